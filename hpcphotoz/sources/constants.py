"""Constants that several sources of images share."""

# The SDSS.
BANDS = ("u", "g", "r", "i", "z")
PIXEL_SCALE = 0.396  # arcsec
# A_band / E(B-V) with R_V = 3.1 on the SFD scale (Schlafly & Finkbeiner 2011, table 6).
SDSS_EXTINCTION = (4.239, 3.303, 2.285, 1.698, 1.263)

ZERO_POINT = 22.5  # AB magnitude of 1 nanomaggy

# Largest part of a stamp's pixels, in any one band, that may be masked: 20 pixels of 64 x 64. Nearly every
# saturated star has more; of the cosmic rays, whose pixels the SDSS has filled in, only the longest have.
# This loses 1 to 2 % of the places in an average SDSS field; a limit of 0 would lose half.
MASKED_FRACTION = 0.005
DAMAGED = ("fail", "skip")  # what an ingest does at an input file that cannot be used

# Maps of Galactic E(B-V) that dustmaps reads, on the SFD scale, in words.
EBV_MAPS = {
    "sfd": "the map of Schlegel, Finkbeiner & Davis 1998 (SFD) at ra and dec",
    "csfd": "the map of Chiang 2023 (CSFD: SFD without large-scale structure) at ra and dec",
}

# Surveys whose images are read, with the names of their files, for `ingest images --help`.
SURVEYS = {
    "sdss": 'ugriz, 0.396": fpC-*.fit[.gz] (DR7), frame-*.fits[.bz2] (DR8+), fpM-, tsField-, photoField-',
    "legacy": 'grz or griz, 0.262": legacysurvey-*-image-*.fits.fz, -invvar-, -psfsize-, -maskbits',
    "hsc": 'grizy, 0.168": calexp-HSC-*.fits (PDR1 to PDR3), deepCoadd_calexp_*.fits',
    "rubin": 'ugrizy, 0.2": deepCoadd_calexp_*.fits (DP0.2), deep_coadd_*.fits (DP1)',
    "des": 'grizY, 0.263": DES*_r*p*_*.fits.fz (DR1, DR2)',
    "euclid": 'VIS,Y,J,H (and g,r,i,z), 0.1": EUC_MER_BGSUB-MOSAIC-*.fits (Q1), MOSAIC-*-RMS, MOSAIC-*-FLAG',
}
