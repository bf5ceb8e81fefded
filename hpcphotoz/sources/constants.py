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
