"""Bytes to one image: pictures, DICOM, intensity, frames, zips of images, lettering in a picture,
corruption, phantoms.
"""
