"""Translations: gettext catalogues from assets/locale, compiled in memory.

Owns the choice of language, the sentences for core's error codes, and how class names, shares and
foreign text (file names, keys) are written. Core itself speaks English only.
"""

import functools
import gettext as gettext_module
import io
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import streamlit as st
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from core.answers.diagnosis import write_percent as percent  # noqa: F401 - the pages say it so
from core.errors import CoreError
from core.files.names import escape_markdown
from core.images.notices import Notice
from core.jobs.state import Job

LOCALE_DIR = Path(__file__).parents[1] / "assets" / "locale"
DOMAIN = "neighbordx"
LANGUAGES = {"en": "English", "zh_CN": "简体中文"}
LANGUAGE_KEY = "lang"  # also the query parameter, so that a reload keeps the language


def N_(message: str) -> str:  # noqa: N802 - the name gettext tools look for
    """Mark a message for extraction; it is translated where it is shown."""
    return message


# Core's error codes -> sentence; core's own English message stands in for codes not listed.
ERRORS: dict[str, str] = {
    "image.empty": N_("The file is empty."),
    "image.truncated": N_("The file is damaged or was cut off. Export it again and retry."),
    "image.not_an_image": N_(
        "This is not an image. PNG, JPEG, TIFF, BMP, WebP, GIF and DICOM can be read."
    ),
    "image.too_large": N_("The image is too large: at most {limit} million pixels can be read."),
    "image.constant": N_("All pixels have the same value, so there is nothing to read."),
    "image.frame": N_("There is no such frame: the file has {n_frames}."),
    "image.dicom_no_pixels": N_("This DICOM file contains no image (only a report or a header)."),
    "image.dicom_transfer_syntax": N_(
        "The compression of this DICOM file ({syntax}) is not supported."
    ),
    "image.dicom_unsupported": N_("This type of DICOM image cannot be read ({reason})."),
    "image.dicom_object": N_(
        "This DICOM file is of the kind “{object}”, not an image that can be read. Choose the image"
        " series that it belongs to."
    ),
    "image.missing": N_("The file is no longer there."),
    "image.tiff_kind": N_(
        "This type of TIFF cannot be read here. Export it with 8 or 16 bits per sample, "
        "little-endian, black as zero, or as PNG or DICOM."
    ),
    "image.window": N_("The window is invalid: its width must be above 0."),
    "image.zip_damaged": N_("The ZIP archive, or a file in it, is damaged. Pack it again."),
    "image.zip_empty": N_("The ZIP archive contains no files."),
    "image.zip_entries": N_("The ZIP archive has {n} entries; at most {limit} are read."),
    "image.zip_encrypted": N_(
        "The file in the ZIP archive is encrypted. Pack it without password."
    ),
    "image.zip_nested": N_("The ZIP archive contains another archive. Pack the images themselves."),
    "image.zip_bomb": N_("The file unpacks to far more than an image would; it was not opened."),
    "export.rejected": N_("A file that could not be read has no answer to export."),
    "export.no_image": N_("A report needs a DICOM image to refer to."),
    "export.tags": N_(
        "The tags of the file cannot be written to a DICOM object ({reason}). Export the image "
        "again from the archive, or use the PDF."
    ),
    "export.failed": N_(
        "The file could not be created. Choose another format; the server log has the details."
    ),
    "image": N_("The image cannot be read."),
    "upload.too_big": N_("The file has {size_mb} MB; the limit is {limit_mb} MB."),
    "unexpected": N_("Something went wrong with this file. Details are in the server log."),
    "checkpoint.unknown": N_("There is no model “{model_id}”. Known models: {known}."),
    "checkpoint.damaged": N_(
        "Model “{model_id}” cannot be loaded ({reason}). Restore its folder or train it again."
    ),
    "checkpoint.trunk": N_(
        "The model was trained with “{name}” weights that differ from those found here. Use the "
        "same weights or train it again."
    ),
    "checkpoint.member": N_(
        "A member of ensemble “{model_id}” is missing or has been replaced: {member}. Restore it"
        " or rebuild the ensemble."
    ),
    "checkpoint": N_("The model cannot be loaded."),
    "backbone.no_weights": N_("No pretrained weights were found for “{name}”."),
    "backbone.file": N_("A pretrained weights file cannot be read or does not match the model."),
    "backbone": N_("The pretrained backbone cannot be set up."),
    "config.device": N_("The requested computing device is not available."),
    "config": N_("A setting is invalid."),
    "data": N_("The data cannot be used."),
    "data.removed": N_(
        "“{key}” is missing: the data was moved or removed during training. Restore it, then "
        "resume."
    ),
    "data.missing": N_("The data is missing. Check the folder, then resume."),
    "data.unreadable": N_("None of the {n} images of this split ({split}) can be read."),
    "data.too_few": N_("A class has too few images. Add images and start again."),
    "data.not_ready": N_("Training cannot start with this data."),
    "data.no_upload": N_("There is no uploaded data “{name}”."),
    "data.not_upload": N_(
        "“{name}” was not uploaded here, so it is left alone. Remove it yourself if you no longer "
        "need it."
    ),
    "data.disk": N_("There is not enough disk space for this training run. Free some space."),
    "job.disk": N_(
        "The disk is full ({free_mb} MB free). Free some space, then resume: training continues "
        "where it stopped."
    ),
    "job.memory": N_(
        "Memory ran out. Choose a smaller preset or close other programs, then resume."
    ),
    "job.killed": N_(
        "The system ended the process, most likely because memory ran out. Choose a smaller preset "
        "or close other programs, then resume."
    ),
    "job.interrupted": N_(
        "Interrupted by a crash, a power cut or a kill. Resume it: training continues from the "
        "last checkpoint."
    ),
    "job.name_taken": N_("The name “{name}” is taken. Choose another name."),
    "job.busy": N_("Another process is already training “{name}”. Wait for it or stop it."),
    "job.data_in_use": N_("“{title}” needs the data. Wait for it or cancel it first."),
    "job.open": N_("The job has not ended. Cancel it first."),
    "gate.reason": N_("The gate does not pass. Give a reason; it is recorded."),
    "archive.refused": N_("The file is rejected: {reason}."),
    "checkpoint.exists": N_("A model named “{model_id}” already exists. Choose another name."),
    "checkpoint.foreign": N_(
        "“{model_id}” in the folder of the models is not a model; it is left alone."
    ),
    "checkpoint.strangers": N_(
        "The folder of model “{model_id}” also holds what is no part of a model ({names}). Move "
        "that elsewhere first."
    ),
    "checkpoint.in_use": N_(
        "Model “{model_id}” is a member of {users}, which must be deleted first."
    ),
    "checkpoint.active": N_("Model “{model_id}” is in use. Use another one first."),
    "checkpoint.busy": N_("Someone else is activating a model. Try again in a moment."),
    "checkpoint.replaced": N_(
        "“{model_id}” is not the model that was in use before: it was rebuilt under the same "
        "name. Activate it through the gate."
    ),
    "checkpoint.no_previous": N_("There is no earlier model to go back to."),
    "config.resume": N_(
        "The files saved under this name were made with other settings or other data, or cannot "
        "be read. Delete them, or train under another name."
    ),
    "config.elsewhere": N_(
        "{key} cannot be set here: it has its own field, or belongs to the check above."
    ),
    "config.gate": N_(
        "Model “{model_id}” is below the minimum validation accuracy for voting: a weak member "
        "adds noise. Leave it out."
    ),
    "config.model_id": N_(
        "A model name may contain letters, digits, dots, dashes and underscores."
    ),
    "data.disease_class": N_("Say which class is the disease. The classes are: {found}."),
    "data.splits": N_(
        "The folders {found} have the names of splits but do not hold the same class folders. Put "
        "one folder per class into each, or say what they are."
    ),
    "data.no_folder": N_("There is no folder “{name}” in the data."),
    "data.layout": N_(
        "The data can be read in more than one way, because of {name}. Keep only one of them in "
        "the folder."
    ),
    "data.one_class": N_(
        "The split “{split}” has no image of the class “{class_name}”; every split needs both."
    ),
    "data.npz": N_("The npz file cannot be used: it does not have the arrays of MedMNIST."),
    "data.classes": N_("Expected exactly two classes. Sort the images into two class folders."),
    "data.empty": N_("No images found. Expected one folder per class."),
    "data.beside": N_(
        "The folder “{name}” contains class folders but is not a split. Name it train, val or "
        "test, or move it elsewhere."
    ),
    "data.link": N_(
        "“{key}” cannot be followed: a broken or circular link, or a folder without read "
        "permission. Repair or remove it."
    ),
    "data.manifest": N_("The table cannot be used: it {reason}."),
    "zip.path": N_("The ZIP is rejected: a name in it points outside its folder."),
    "zip.names": N_("The ZIP is rejected: a file and a folder in it have the same name."),
    "zip.link": N_("The ZIP is rejected: it contains a symbolic link."),
    "zip.special": N_("The ZIP is rejected: it contains something other than regular files."),
    "zip.encrypted": N_("The ZIP is password-protected. Pack it again without a password."),
    "zip.bomb": N_("The ZIP is rejected: it unpacks to several hundred times its size."),
    "zip.too_big": N_("The ZIP is rejected: it unpacks to more than the limit."),
    "zip.too_many": N_("The ZIP is rejected: it contains too many files."),
    "zip.empty": N_("The ZIP contains no files."),
    "zip.disk": N_("There is not enough disk space to unpack this ZIP."),
    "zip": N_("The ZIP cannot be read. Pack the folder again as a plain ZIP."),
    "job": N_("The job failed. Details are in its log."),
    "curation.moved_on": N_(
        "Someone else changed the gallery (now at version {current}). Review it and repeat your "
        "change."
    ),
    "curation.nothing": N_("Nothing would change: the images have these values already."),
    "curation.no_undo": N_("There is no change to undo."),
    "curation.too_few": N_(
        "No image of class “{class_name}” would be left to vote. Keep at least one."
    ),
    "curation.too_long": N_("The note has {n} characters; at most {limit} are kept."),
    "curation.filter_name": N_("A filter name must have 1 to 100 characters."),
    "curation.database": N_("The database of corrections cannot be used."),
    "curation": N_("The change to the gallery cannot be made."),
    "evaluation.unknown": N_("Model “{model_id}” has no evaluation “{name}”."),
    "evaluation.damaged": N_("The saved evaluation “{name}” is damaged. Run it again."),
    "evaluation.one_class": N_("These images are all of one class; both classes are needed."),
    "external.sample": N_(
        "{n_sample} of {n} images cannot be used for recalibration: both the sample and the rest"
        " need images of both classes."
    ),
    "knn.nobody": N_("No training image is left to compare with."),
}

# Codes of core's notices -> sentence.
NOTICES: dict[str, str] = {
    "image.object_unknown": N_(
        "The DICOM file does not state a known kind of object (SOP class); it was read as a "
        "picture. Check that it is one."
    ),
    "image.for_processing": N_(
        "This is raw detector data (FOR PROCESSING), not the image as displayed: the answer may "
        "not hold. Prefer the FOR PRESENTATION image of the same view."
    ),
    "image.tile": N_(
        "This is one tile of a tiled image, not the whole of it; every frame is another tile."
    ),
    "image.no_reference": N_(
        "The DICOM file lacks {tags}: DICOM exports carry its patient but cannot refer to this "
        "image."
    ),
    "image.aspect": N_(
        "The file's pixels are not square (height / width {ratio}, from {source}): brought to true "
        "proportion, resampled from {old} to {new}."
    ),
    "image.aspect_ignored": N_(
        "The file states an impossible shape of its pixels (height / width {ratio}, from {source});"
        " this statement was ignored."
    ),
    "image.aspect_conflict": N_(
        "The file contradicts itself on the shape of its pixels: height / width {ratio} by "
        "{source}, {other_ratio} by {other}. The first was used."
    ),
    "image.overlays": N_(
        "Overlay graphics in the file ({n}), such as marks or text, are not part of the image that"
        " was read."
    ),
    "image.overlays_hidden": N_(
        "Overlay graphics in the file ({n}), such as marks or text, are not part of the image that"
        " was read. Not all of them can be shown here."
    ),
    "image.palette_ignored": N_(
        "The file gives some values of this image a colour, by a palette that cannot be read: it "
        "is shown and read in grey."
    ),
}

# What a DICOM object is, in core's words -> translated.
OBJECTS: dict[str, str] = {
    "directory of a disc": N_("directory of a disc"),
    "segmentation": N_("segmentation"),
    "radiotherapy dose map": N_("radiotherapy dose map"),
    "radiotherapy structure set": N_("radiotherapy structure set"),
    "radiotherapy plan or record": N_("radiotherapy plan or record"),
    "structured report": N_("structured report"),
    "parametric map": N_("parametric map"),
    "map of measurements": N_("map of measurements"),
    "presentation state": N_("presentation state"),
    "encapsulated document": N_("encapsulated document"),
    "waveform": N_("waveform"),
    "raw data object": N_("raw data object"),
    "spectroscopy record": N_("spectroscopy record"),
    "real world value mapping": N_("real world value mapping"),
    "registration": N_("registration"),
    "set of fiducials": N_("set of fiducials"),
    "surface model": N_("surface model"),
    "key object selection": N_("key object selection"),
    "overlay without its image": N_("overlay without its image"),
    "set of measurements": N_("set of measurements"),
    "report": N_("report"),
}

CLASS_NAMES: dict[str, str] = {
    "normal": N_("normal"),
    "healthy": N_("healthy"),
    "disease": N_("disease"),
    "diseased": N_("diseased"),
    "abnormal": N_("abnormal"),
    "pneumonia": N_("pneumonia"),
    "lesion": N_("lesion"),
    "benign": N_("benign"),
    "malignant": N_("malignant"),
    "tuberculosis": N_("tuberculosis"),
    "nodule": N_("nodule"),
    "fracture": N_("fracture"),
    "glaucoma": N_("glaucoma"),
    "retinopathy": N_("retinopathy"),
    "diabetic retinopathy": N_("diabetic retinopathy"),
    "covid": N_("COVID-19"),
    "covid 19": N_("COVID-19"),
}


@functools.lru_cache(maxsize=8)
def _compile(path: Path, _mtime_ns: int) -> gettext_module.GNUTranslations:
    buffer = io.BytesIO()
    with path.open("rb") as handle:
        write_mo(buffer, read_po(handle))
    buffer.seek(0)
    return gettext_module.GNUTranslations(buffer)


def load_catalogue(language_code: str) -> gettext_module.GNUTranslations:
    """The compiled catalogue of one language; read again when its file changes."""
    path = LOCALE_DIR / language_code / "LC_MESSAGES" / f"{DOMAIN}.po"
    return _compile(path, path.stat().st_mtime_ns)


def find_language(tag: str) -> str | None:
    """The code of the language that a tag (``zh``, ``zh-CN``, ``en_GB``) or its own name means."""
    for code, name in LANGUAGES.items():
        if tag == name or re.split(r"[-_]", tag.lower())[0] == code[:2]:
            return code
    return None


def default_language() -> str:
    """The browser's language where we have it, else English."""
    return find_language(st.context.locale or "") or "en"


def language() -> str:
    """The session's language code."""
    chosen = st.session_state.get(LANGUAGE_KEY)
    return chosen if chosen in LANGUAGES else default_language()


def _(message: str) -> str:
    """Translate one message into the session's language."""
    return load_catalogue(language()).gettext(message)


def ngettext(singular: str, plural: str, n: int) -> str:
    """Translate a message that counts something."""
    return load_catalogue(language()).ngettext(singular, plural, n)


def class_label(name: str) -> str:
    """A class name as shown: translated when it is a known word, else as it was trained."""
    known = CLASS_NAMES.get(re.sub(r"[\s_-]+", " ", name).strip().lower())
    return _(known) if known and language() != "en" else name.replace("_", " ")


def describe_error(code: str | None, message: str, params: Mapping[str, object]) -> str:
    """A core error in the session's language, as plain text for tables.

    English keeps core's own, fuller message.
    """
    message = message[:1].upper() + message[1:]
    template = ERRORS.get(code or "") or ERRORS.get((code or "").partition(".")[0])
    if language() == "en" or template is None:
        return message
    try:
        return _(template).format(**_translate_params(params))
    except (KeyError, IndexError):  # a parameter core did not give
        return message


def _translate_params(params: Mapping[str, object]) -> dict[str, object]:
    """The kind of a DICOM object in the session's language; everything else as it is."""
    known = OBJECTS.get(str(params.get("object")))
    return {**params, "object": _(known)} if known else dict(params)


def describe_notice(notice: Notice) -> str:
    """A notice of core in the session's language; core's own sentence where there is none."""
    template = NOTICES.get(notice.code)
    if language() == "en" or template is None:
        return notice.text
    try:
        return _(template).format(**notice.params)
    except (KeyError, IndexError):
        return notice.text


def describe(error: CoreError) -> str:
    """``describe_error`` of an exception, safe for Markdown."""
    return plain(describe_error(error.code, str(error), error.params))


def describe_job(job: Job) -> str:
    """Why a job failed, safe for Markdown."""
    return plain(describe_error(job.error_code, job.error, job.error_params))


def plain(text: str) -> str:
    """Foreign text (file names, keys) made safe for Markdown: shown as is, never as markup."""
    return escape_markdown(text)


def moment(iso: str) -> str:
    """An ISO 8601 time as date and minute, as stored (UTC); unknown forms are shown as is."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso
