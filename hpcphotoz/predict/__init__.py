"""Redshift PDFs of a catalogue: ensembles, calibration, and the files that qp, RAIL and tables read."""

from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.predict.catalogue import check_output_path, check_points_path, predict
from hpcphotoz.predict.columns import point_estimates
from hpcphotoz.predict.fit import fit_calibration, stacking_weights
from hpcphotoz.predict.pdfs import average_pdfs
from hpcphotoz.predict.run_calibration import calibrate, find_calibration

__all__ = ["Calibration", "average_pdfs", "calibrate", "check_output_path"]
__all__ += ["check_points_path", "find_calibration", "fit_calibration", "point_estimates", "predict"]
__all__ += ["stacking_weights"]
