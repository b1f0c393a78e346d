"""The CLAIM 2024 checklist: its items by number, and what this report covers.

The short names were compared, item by item, with the checklist's online form (44 items, read in
November 2026) and with its explanations of the items.

Reference: Tejani et al. 2024, Checklist for Artificial Intelligence in Medical Imaging (CLAIM):
2024 Update, Radiology: Artificial Intelligence 6(4), e240300, doi:10.1148/ryai.240300.
"""

from collections.abc import Mapping

NAME = "CLAIM (Checklist for Artificial Intelligence in Medical Imaging), 2024 update"
ITEMS: Mapping[int, str] = {
    1: "identification as a study of AI methodology, with the category of technology",
    2: "summary of study design, methods, results and conclusions",
    3: "scientific or clinical background, intended use and role of the AI approach",
    4: "study aims, objectives and hypotheses",
    5: "prospective or retrospective study",
    6: "study goal",
    7: "data sources",
    8: "inclusion and exclusion criteria",
    9: "data preprocessing",
    10: "selection of data subsets",
    11: "de-identification methods",
    12: "how missing data were handled",
    13: "image acquisition protocol",
    14: "methods used to obtain the reference standard",
    15: "rationale for choosing the reference standard",
    16: "source of the reference standard's annotations",
    17: "annotation of the test set",
    18: "inter- and intrarater variability of what annotators described",
    19: "how data were assigned to partitions",
    20: "level at which partitions are disjoint",
    21: "intended sample size",
    22: "detailed description of the model",
    23: "software libraries, frameworks and packages",
    24: "initialisation of model parameters",
    25: "details of the training approach",
    26: "method of selecting the final model",
    27: "ensembling techniques",
    28: "metrics of model performance",
    29: "statistical measures of significance and uncertainty",
    30: "robustness or sensitivity analysis",
    31: "methods for explainability or interpretability",
    32: "evaluation on internal data",
    33: "testing on external data",
    34: "clinical trial registration",
    35: "numbers of patients or examinations included and excluded",
    36: "demographic and clinical characteristics of each partition",
    37: "performance metrics and measures of statistical uncertainty",
    38: "estimates of diagnostic performance and their precision",
    39: "failure analysis of incorrect results",
    40: "study limitations",
    41: "implications for practice, intended use and clinical role",
    42: "reference to the full protocol or to technical details",
    43: "availability of software, trained model and data",
    44: "sources of funding and other support, role of funders",
}
# Items that a section covers only in part: what the author must add.
IN_PART: Mapping[int, str] = {
    2: "conclusions",
    3: "background",
    7: "origin of the data, fit to the intended population",
    8: "criteria by which the data were gathered",
    14: "how the labels were made",
    35: "exclusions before the data reached the program, flowchart",
    36: "age, sex and findings, where the data hold no such columns",
    40: "limits of the data and of the study",
    43: "availability of the data",
}
