"""Which DICOM objects are pictures: the SOP class is looked at before any pixel.

A segmentation, a dose grid, a parametric map or a presentation state may hold pixels, but no
picture of a patient: shown as one, it would be an invention. So the classes that are read are
listed here one by one, and every other class that the standard knows is refused by its name.
Objects without a class, of a private one, or of one newer than pydicom's dictionary are read with a
notice, unless their modality or their tags say that they are not a picture.
"""

from collections.abc import Iterator

from pydicom import uid as names
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from core.errors import ImageError
from core.images.notices import Notice

_PICTURES = frozenset(
    {
        # projection X-ray
        names.ComputedRadiographyImageStorage,
        names.DigitalXRayImageStorageForPresentation,
        names.DigitalMammographyXRayImageStorageForPresentation,
        names.DigitalIntraOralXRayImageStorageForPresentation,
        names.BreastProjectionXRayImageStorageForPresentation,
        names.XRayAngiographicImageStorage,
        names.EnhancedXAImageStorage,
        names.XRayRadiofluoroscopicImageStorage,
        names.EnhancedXRFImageStorage,
        UID("1.2.840.10008.5.1.4.1.1.12.3"),  # X-Ray Angiographic Bi-Plane, retired
        names.RTImageStorage,  # a portal image or a digitally reconstructed radiograph
        names.EnhancedRTImageStorage,
        names.EnhancedContinuousRTImageStorage,
        # slices and volumes
        names.CTImageStorage,
        names.EnhancedCTImageStorage,
        names.LegacyConvertedEnhancedCTImageStorage,
        names.MRImageStorage,
        names.EnhancedMRImageStorage,
        names.EnhancedMRColorImageStorage,
        names.LegacyConvertedEnhancedMRImageStorage,
        names.XRay3DAngiographicImageStorage,
        names.XRay3DCraniofacialImageStorage,
        names.BreastTomosynthesisImageStorage,
        # nuclear medicine
        names.NuclearMedicineImageStorage,
        UID("1.2.840.10008.5.1.4.1.1.5"),  # Nuclear Medicine, retired
        names.PositronEmissionTomographyImageStorage,
        names.LegacyConvertedEnhancedPETImageStorage,
        names.EnhancedPETImageStorage,
        # ultrasound
        names.UltrasoundImageStorage,
        names.UltrasoundMultiFrameImageStorage,
        names.EnhancedUSVolumeStorage,
        names.PhotoacousticImageStorage,
        UID("1.2.840.10008.5.1.4.1.1.6"),  # Ultrasound, retired
        UID("1.2.840.10008.5.1.4.1.1.3"),  # Ultrasound Multi-frame, retired
        # visible light
        names.VLEndoscopicImageStorage,
        names.VideoEndoscopicImageStorage,
        names.VLMicroscopicImageStorage,
        names.VideoMicroscopicImageStorage,
        names.VLSlideCoordinatesMicroscopicImageStorage,
        names.VLPhotographicImageStorage,
        names.VideoPhotographicImageStorage,
        names.VLWholeSlideMicroscopyImageStorage,
        names.DermoscopicPhotographyImageStorage,
        names.ConfocalMicroscopyImageStorage,
        names.ConfocalMicroscopyTiledPyramidalImageStorage,
        UID("1.2.840.10008.5.1.4.1.1.77.1"),  # VL Image, trial
        UID("1.2.840.10008.5.1.4.1.1.77.2"),  # VL Multi-frame Image, trial
        # the eye, and light inside vessels
        names.OphthalmicPhotography8BitImageStorage,
        names.OphthalmicPhotography16BitImageStorage,
        names.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage,
        names.WideFieldOphthalmicPhotography3DCoordinatesImageStorage,
        names.OphthalmicTomographyImageStorage,
        names.OphthalmicOpticalCoherenceTomographyEnFaceImageStorage,
        names.IntravascularOpticalCoherenceTomographyImageStorageForPresentation,
        # captures and prints
        names.SecondaryCaptureImageStorage,
        names.MultiFrameSingleBitSecondaryCaptureImageStorage,
        names.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        names.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        names.MultiFrameTrueColorSecondaryCaptureImageStorage,
        UID("1.2.840.10008.5.1.1.29"),  # Hardcopy Grayscale, retired
        UID("1.2.840.10008.5.1.1.30"),  # Hardcopy Color, retired
    }
)
_FOR_PROCESSING = frozenset(
    {
        names.DigitalXRayImageStorageForProcessing,
        names.DigitalMammographyXRayImageStorageForProcessing,
        names.DigitalIntraOralXRayImageStorageForProcessing,
        names.BreastProjectionXRayImageStorageForProcessing,
        names.IntravascularOpticalCoherenceTomographyImageStorageForProcessing,
    }
)
_TILED = frozenset(
    {
        names.VLWholeSlideMicroscopyImageStorage,
        names.ConfocalMicroscopyTiledPyramidalImageStorage,
    }
)
# Part of a class's name -> what the object is, in a reader's words. The first that fits counts.
_WORDS = (
    ("Directory", "directory of a disc"),
    ("Segmentation", "segmentation"),
    ("RT Dose", "radiotherapy dose map"),
    ("RT Structure Set", "radiotherapy structure set"),
    ("RT ", "radiotherapy plan or record"),
    ("Radiation Dose SR", "structured report"),
    ("Radiation", "radiotherapy plan or record"),
    ("Parametric Map", "parametric map"),
    ("Thickness Map", "map of measurements"),
    ("Topography Map", "map of measurements"),
    ("B-scan Volume Analysis", "map of measurements"),
    ("Presentation State", "presentation state"),
    ("Encapsulated", "encapsulated document"),
    ("Waveform", "waveform"),
    ("Raw Data", "raw data object"),
    ("Spectroscopy", "spectroscopy record"),
    ("Real World Value", "real world value mapping"),
    ("Registration", "registration"),
    ("Fiducials", "set of fiducials"),
    ("Surface", "surface model"),
    ("Key Object", "key object selection"),
    (" SR ", "structured report"),
    ("Overlay", "overlay without its image"),
    ("Measurements", "set of measurements"),
    ("Report", "report"),
)
# Of objects whose class does not say what they are: by modality, or by a tag of theirs alone.
_MODALITIES = {
    "SEG": "segmentation",
    "RTDOSE": "radiotherapy dose map",
    "RTSTRUCT": "radiotherapy structure set",
    "RTPLAN": "radiotherapy plan or record",
    "RTRECORD": "radiotherapy plan or record",
    "RTRAD": "radiotherapy plan or record",
    "PR": "presentation state",
    "SR": "structured report",
    "KO": "key object selection",
    "DOC": "encapsulated document",
    "REG": "registration",
    "FID": "set of fiducials",
    "RWV": "real world value mapping",
    "OPM": "map of measurements",
    "ECG": "waveform",
    "HD": "waveform",
    "EPS": "waveform",
    "AU": "waveform",
    "RESP": "waveform",
    "M3D": "surface model",
}
_TELLTALES = {
    "SegmentSequence": "segmentation",
    "DoseGridScaling": "radiotherapy dose map",
    "ReferencedPresentationLUTSequence": "presentation state",
}
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def check_object(dataset: Dataset) -> tuple[Notice, ...]:
    """Refuse an object that is not a picture; say what is unusual about one that is.

    Args:
        dataset: the header; pixels are not looked at.

    Raises:
        ImageError: the object is not a picture, or not one of a patient.
    """
    classes = tuple(_list_classes(dataset))
    for sop_class in classes:
        if sop_class not in _PICTURES | _FOR_PROCESSING and _is_known(sop_class):
            raise _refuse(_find_words(sop_class), name=_name(sop_class))
    if not any(_is_known(sop_class) for sop_class in classes):
        _refuse_by_tags(dataset)
    return tuple(_list_notices(dataset, classes))


def _list_classes(dataset: Dataset) -> Iterator[UID]:
    """The object's own SOP class, then the file header's copy of it, where they are there."""
    meta = getattr(dataset, "file_meta", FileMetaDataset())
    for value in (dataset.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")):
        text = str(value or "").strip(" \0")
        if text:
            yield UID(text)


def _is_known(sop_class: UID) -> bool:
    return not sop_class.is_private and sop_class.name != str(sop_class)


def _name(sop_class: UID) -> str:
    """The standard's name of a class, without the word that they all end with."""
    return str(sop_class.name).removesuffix(" - Trial").removesuffix(" Storage")


def _find_words(sop_class: UID) -> str:
    name = f"{sop_class.name} "
    return next((words for part, words in _WORDS if part in name), _name(sop_class))


def _refuse(what: str, *, name: str) -> ImageError:
    article = "an" if what[0].lower() in "aeio" else "a"
    kind = f"{article} {what}" if what.lower() == name.lower() else f"{article} {what} ({name})"
    return ImageError(
        f"this DICOM file is {kind}, not an image that can be read. Choose the image series that "
        "it belongs to.",
        code="image.dicom_object",
        params={"object": what, "name": name},
    )


def _refuse_by_tags(dataset: Dataset) -> None:
    """Refuse an object of no known class whose modality or tags are no picture's."""
    modality = str(dataset.get("Modality") or "").strip().upper()
    words = _MODALITIES.get(modality)
    words = words or next((w for tag, w in _TELLTALES.items() if tag in dataset), None)
    if words:
        raise _refuse(words, name=words)


def _list_notices(dataset: Dataset, classes: tuple[UID, ...]) -> Iterator[Notice]:
    if not any(_is_known(sop_class) for sop_class in classes):
        state = "of a private or unknown kind" if classes else "without a statement of its kind"
        yield Notice(
            "image.object_unknown",
            f"The DICOM object is {state} (SOP class); it was read as a picture. Check that it is "
            "one.",
        )
    intent = str(dataset.get("PresentationIntentType") or "").strip().upper()
    if intent == "FOR PROCESSING" or any(c in _FOR_PROCESSING for c in classes):
        yield Notice(
            "image.for_processing",
            "This is raw detector data (FOR PROCESSING), not the image as displayed: the answer "
            "may not hold. Prefer the FOR PRESENTATION image of the same view.",
        )
    if any(c in _TILED for c in classes) and str(dataset.get("NumberOfFrames") or 1) != "1":
        yield Notice(
            "image.tile",
            "This is one tile of a tiled image, not the whole of it; every frame is another tile.",
        )
    missing = [tag for tag in _IDENTITY if not dataset.get(tag)]
    if missing:
        yield Notice(
            "image.no_reference",
            f"The DICOM file lacks {', '.join(missing)}: DICOM exports carry its patient but "
            "cannot refer to this image.",
            {"tags": ", ".join(missing)},
        )
