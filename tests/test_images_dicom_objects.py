"""Objects that are no pictures are refused by name; unusual pictures are read and announced."""

import numpy as np
import pytest
from pictures import PYDICOM_FILES, build_dicom, encode, ramp
from pydicom import uid as names
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from core.errors import ImageError
from core.images.decode import Image, decode

PICTURES = [
    names.ComputedRadiographyImageStorage,
    names.DigitalXRayImageStorageForPresentation,
    names.DigitalMammographyXRayImageStorageForPresentation,
    names.CTImageStorage,
    names.MRImageStorage,
    names.UltrasoundImageStorage,
    names.UltrasoundMultiFrameImageStorage,
    names.PositronEmissionTomographyImageStorage,
    names.NuclearMedicineImageStorage,
    names.XRayAngiographicImageStorage,
    names.OphthalmicPhotography8BitImageStorage,
    names.OphthalmicTomographyImageStorage,
    names.VLEndoscopicImageStorage,
    names.EnhancedMRImageStorage,
    names.RTImageStorage,
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound, retired
]
NO_PICTURES = {
    names.SegmentationStorage: "segmentation",
    names.RTDoseStorage: "radiotherapy dose map",
    names.ParametricMapStorage: "parametric map",
    names.GrayscaleSoftcopyPresentationStateStorage: "presentation state",
    names.BlendingSoftcopyPresentationStateStorage: "presentation state",
    names.ComprehensiveSRStorage: "structured report",
    names.XRayRadiationDoseSRStorage: "structured report",
    names.EncapsulatedPDFStorage: "encapsulated document",
    names.TwelveLeadECGWaveformStorage: "waveform",
    names.RawDataStorage: "raw data object",
    names.RealWorldValueMappingStorage: "real world value mapping",
    names.SpatialRegistrationStorage: "registration",
    names.SpatialFiducialsStorage: "set of fiducials",
    names.SurfaceSegmentationStorage: "segmentation",
    names.RTPlanStorage: "radiotherapy plan or record",
    names.RTStructureSetStorage: "radiotherapy structure set",
    names.OphthalmicThicknessMapStorage: "map of measurements",
    names.MRSpectroscopyStorage: "spectroscopy record",
}


def list_codes(image: Image) -> list[str]:
    return [notice.code for notice in image.notices if notice.code != "image.no_reference"]


@pytest.mark.parametrize("sop_class", PICTURES)
def test_pictures_are_read_without_a_word(sop_class: str) -> None:
    assert list_codes(decode(build_dicom(ramp(), SOPClassUID=sop_class))) == []


@pytest.mark.parametrize(("sop_class", "what"), NO_PICTURES.items())
def test_what_is_no_picture_is_refused_by_its_name(sop_class: str, what: str) -> None:
    for stored in (ramp(), np.zeros((8, 8), np.uint8)):  # before "every pixel is the same"
        with pytest.raises(ImageError, match=what) as caught:
            decode(build_dicom(stored, SOPClassUID=sop_class))
        assert caught.value.code == "image.dicom_object"
        assert caught.value.params["object"] == what


def test_a_real_segmentation_and_a_real_dose_are_refused() -> None:
    for name, what in (("liver_1frame.dcm", "segmentation"), ("rtdose.dcm", "radiotherapy dose")):
        with pytest.raises(ImageError, match=f"this DICOM file is a {what}"):
            decode((PYDICOM_FILES / "test_files" / name).read_bytes())


def test_every_standard_class_that_is_not_listed_is_refused() -> None:
    for sop_class in ("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.501.1"):
        with pytest.raises(ImageError) as caught:
            decode(build_dicom(ramp(), SOPClassUID=sop_class))
        assert caught.value.code == "image.dicom_object"


def test_the_files_header_alone_may_say_what_the_object_is() -> None:
    data = build_dicom(ramp(), SOPClassUID=None)
    assert list_codes(decode(data)) == []  # its file header says Secondary Capture
    raw_data = data.replace(b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.840.10008.5.1.4.1.1.66", 1)
    with pytest.raises(ImageError, match="raw data object"):
        decode(raw_data)


@pytest.mark.parametrize("sop_class", ["1.2.3", "1.2.840.10008.5.1.4.1.1.99999"])
def test_unknown_objects_are_read_with_a_notice_unless_their_tags_betray_them(
    sop_class: str,
) -> None:
    def build(**tags: object) -> bytes:
        data = build_dicom(ramp(), SOPClassUID=sop_class, **tags)
        old = str(names.SecondaryCaptureImageStorage).encode()
        return data.replace(old, b"1.2.3.4.5.6.7.8.9.1.2.3.4", 1)  # the file's header, too

    assert list_codes(decode(build(Modality="CT"))) == ["image.object_unknown"]
    for tags, what in (
        ({"Modality": "SEG"}, "segmentation"),
        ({"Modality": "RTDOSE"}, "radiotherapy dose map"),
        ({"DoseGridScaling": "0.001"}, "radiotherapy dose map"),
        ({"SegmentSequence": Sequence([Dataset()])}, "segmentation"),
    ):
        with pytest.raises(ImageError, match=what):
            decode(build(**tags))


def test_raw_detector_data_are_read_and_announced() -> None:
    by_class = build_dicom(
        ramp(), SOPClassUID=names.DigitalMammographyXRayImageStorageForProcessing
    )
    by_intent = build_dicom(
        ramp(),
        SOPClassUID=names.DigitalXRayImageStorageForPresentation,
        PresentationIntentType="FOR PROCESSING",
    )
    for data in (by_class, by_intent):
        image = decode(data)
        assert list_codes(image) == ["image.for_processing"]
        assert "raw detector data" in image.notices[0].text
        assert image.pixels.max() == 255


def test_a_tile_of_a_slide_is_not_taken_for_the_slide() -> None:
    tiles = np.stack([ramp(), ramp()[::-1]])
    slide = {"SOPClassUID": names.VLWholeSlideMicroscopyImageStorage}
    assert list_codes(decode(build_dicom(tiles, **slide))) == ["image.tile"]
    assert list_codes(decode(build_dicom(ramp(), **slide))) == []


def test_an_image_that_cannot_be_referred_to_is_announced() -> None:
    whole = {
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3.5",
        "SeriesInstanceUID": "1.2.3.6",
    }
    assert decode(build_dicom(ramp(), **whole)).notices == ()
    notice = decode(build_dicom(ramp(), **{**whole, "SOPClassUID": None})).notices[-1]
    assert (notice.code, notice.params) == ("image.no_reference", {"tags": "SOPClassUID"})
    assert "Secret" not in notice.text
    assert decode(encode(ramp(), "PNG")).notices == ()


def _frame_groups(presentation: str) -> Sequence:
    kind, group = Dataset(), Dataset()
    kind.PixelPresentation = presentation
    group.MRImageFrameTypeSequence = Sequence([kind])
    return Sequence([group])


@pytest.mark.parametrize("as_frame_type", [False, True])
def test_a_supplemental_palette_colours_the_values_from_its_first_entry_on(
    as_frame_type: bool,
) -> None:
    stored = np.array([[0, 50, 100], [200, 201, 150]], dtype=np.uint16)
    tags: dict[str, object] = {
        "SOPClassUID": names.EnhancedMRImageStorage,
        "BitsStored": 8,
        "HighBit": 7,
        "WindowCenter": 75.5,
        "WindowWidth": 151,
    }
    for colour, entries in (("Red", [65535, 0]), ("Green", [0, 65535]), ("Blue", [0, 32768])):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 200, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    grey = decode(build_dicom(stored, **tags))
    assert grey.is_grey
    shown = (
        {"SharedFunctionalGroupsSequence": _frame_groups("MIXED")}
        if as_frame_type
        else {"PixelPresentation": "COLOR"}
    )
    image = decode(build_dicom(stored, **tags, **shown), invert=True)
    assert image.pixels[1].tolist() == [[255, 0, 0], [0, 255, 128], [255, 255, 255]]
    assert image.pixels[0].tolist() == grey.pixels[0].tolist()
    assert (image.is_grey, image.is_inverted) == (False, False)
    tags["RedPaletteColorLookupTableDescriptor"] = [2, 200, 12]
    damaged = decode(build_dicom(stored, **tags, **shown))
    np.testing.assert_array_equal(damaged.pixels, grey.pixels)
    assert list_codes(damaged) == ["image.palette_ignored"]
