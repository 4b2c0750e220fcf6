"""The columns of every table, declared once: name, kind, meaning and unit."""

from __future__ import annotations

from flatscope.results.table import Column

_IMAGE = Column("image", "text", "Name of the picture, unique within a run.")
_STATUS = Column("status", "text", "accepted, uncertain (counts, with a doubt), rejected, or failed.")
_REASON = Column("reason", "text", "Why the row is not simply accepted.")
_ROW = Column(
    "row_px", "number", "Row of the centre, from the upper edge; whole numbers at pixel centres.", "px"
)
_COL = Column("col_px", "number", "Column of the centre, from the left edge.", "px")
_X = Column("x_nm", "number", "To the right of the centre of the first pixel.", "nm")
_Y = Column("y_nm", "number", "Below the centre of the first pixel.", "nm")
_SUBLATTICE = Column("sublattice", "text", "Name of the sublattice: metal or chalcogen, a or b.")
_FRAME = Column("frame", "count", "Frame of a movie, from 0; empty for an image.")

_LAYER_CHANCES = tuple(
    Column(f"p_{n}", "number", f"Probability of {n} layer{'s' * (n > 1)}.") for n in range(1, 7)
)

FLAKE_COLUMNS = (
    _IMAGE,
    Column("flake_id", "count", "One connected crystal; its regions share the number."),
    Column("region_id", "count", "A part of one thickness; its label in the label image."),
    Column(
        "layers",
        "text",
        '"1" to "6", "7" to "10" where the thickness allows that number only, else "thick"; "1|2" where several '
        'numbers fit, "thin" where no number is known.',
    ),
    Column(
        "layers_p",
        "number",
        "Probability that this is right (for several numbers: that one of them is), given that it is a crystal.",
    ),
    Column(
        "p_flake",
        "number",
        "Probability that the region is a crystal, not residue or bare substrate.",
    ),
    *_LAYER_CHANCES[:4],
    Column("p_thick", "number", "Probability of more than six layers."),
    _STATUS,
    _REASON,
    Column("area_um2", "number", "Area; empty where the pixel size is unknown.", "µm²"),
    Column("area_px", "count", "Area.", "px"),
    _ROW,
    _COL,
    Column("touches_edge", "flag", "The region touches the edge of the picture: its true area is larger."),
    *(
        Column(f"contrast_{channel[0]}", "number", f"I / I_substrate − 1 in {channel}.")
        for channel in ("red", "green", "blue")
    ),
    Column("oxide_nm", "number", "SiO2 thickness that explains the colours of the set-up best.", "nm"),
    Column("oxide_sigma_nm", "number", "Its 1-sigma error.", "nm"),
    *_LAYER_CHANCES[4:],
    Column("layers_low", "number", "Lower end of the 95 % interval of the layer number."),
    Column(
        "layers_high", "number", "Upper end of it, for thick regions too where the optics can still tell."
    ),
    Column(
        "thickness_nm", "number", "Thickness by the interference colour; empty where it is left open.", "nm"
    ),
    Column("thickness_low_nm", "number", "Lower end of its 95 % interval, over all candidates.", "nm"),
    Column("thickness_high_nm", "number", "Upper end of it.", "nm"),
    Column(
        "thickness_candidates_nm",
        "text",
        'The thicknesses in question, likeliest first, such as "12.3|41.0" where colours repeat.',
        "nm",
    ),
)

TWIST_COLUMNS = (
    _IMAGE,
    Column("flake_id", "count", "The crystal, by size within the picture."),
    _ROW,
    _COL,
    Column(
        "twist_deg", "number", "Angle between the layers in [0, 60]: 0 where both point the same way.", "°"
    ),
    Column("sigma_deg", "number", "Its 1-sigma error.", "°"),
    Column("twist_fold30_deg", "number", "The angle with θ and 60° − θ counted as one, in [0, 30].", "°"),
    Column(
        "bottom_deg",
        "number",
        "Direction of a corner of the first layer in [0, 120), counter-clockwise.",
        "°",
    ),
    Column("top_deg", "number", "Direction of a corner of the second layer.", "°"),
    _STATUS,
    _REASON,
    Column("method", "text", "How the orientation was measured: edges, network, or both."),
    Column("moire_nm", "number", "Period of the moiré pattern.", "nm"),
    Column("area_1l_px", "count", "Area of the first layer.", "px"),
    Column("area_2l_px", "count", "Area of the second layer.", "px"),
    Column("area_1l_um2", "number", "Area of the first layer; empty where the pixel size is unknown.", "µm²"),
    Column("area_2l_um2", "number", "Area of the second layer.", "µm²"),
    Column("moire_sigma_nm", "number", "1-sigma error of the moiré period.", "nm"),
    Column("moire_phonon_per_nm", "number", "Wave number of the moiré phonon.", "1/nm"),
)

COLUMN_COLUMNS = (
    _IMAGE,
    Column("column_id", "count", "Number of the column, from top to bottom."),
    _ROW,
    _COL,
    _X,
    _Y,
    Column("sigma_nm", "number", "1-sigma error of either coordinate.", "nm"),
    Column(
        "species", "text", 'Atoms of the column: "W", "Se2", "Se" where one of two lacks, "other", "none".'
    ),
    Column("species_p", "number", "Probability of the species."),
    Column("intensity", "number", "Height over that of the usual column of its sublattice."),
    _SUBLATTICE,
    _STATUS,
    _REASON,
    Column("intensity_sigma", "number", "1-sigma error of the intensity."),
    Column("sigma_px", "number", "1-sigma error of either coordinate.", "px"),
)

MOIRE_COLUMNS = (
    _IMAGE,
    Column("pair_id", "count", "Number of the pair of layers."),
    Column("layer_a", "count", "The first layer; an image does not tell which one is on top."),
    Column("layer_b", "count", "The second layer."),
    Column("material_a", "text", "Material of the first layer."),
    Column("material_b", "text", "Material of the second layer."),
    Column(
        "twist_deg",
        "number",
        "Angle between the layers: in [0, 60], 0 where both point the same way, where brightness tells which way they "
        "point (kind R or H); else in [0, 30].",
        "°",
    ),
    Column("twist_sigma_deg", "number", "Its 1-sigma error.", "°"),
    Column(
        "strain_percent",
        "number",
        "By how much the second lattice is larger against the first than the materials' are.",
        "%",
    ),
    Column("strain_sigma_percent", "number", "Its 1-sigma error.", "%"),
    Column(
        "shear_percent",
        "number",
        "Pure shear of the second layer, half the difference of its stretches.",
        "%",
    ),
    Column("shear_sigma_percent", "number", "Its 1-sigma error; noise alone gives shear of about this.", "%"),
    Column("moire_nm", "number", "Period of the moiré pattern, the mean of three directions.", "nm"),
    Column("moire_sigma_nm", "number", "Its 1-sigma error, that of the pixel size left out.", "nm"),
    Column("kind", "text", "R: both layers point the same way; H: against each other; empty if unknown."),
    Column("share_aa", "number", "Share of the field near hollow over hollow: AA; in H 2H."),
    Column(
        "share_ab",
        "number",
        "Near the second site of one layer over the first of the other: AB; in H MM or XX.",
    ),
    Column("share_ba", "number", "Near the opposite: BA; in H XX or MM."),
    Column("share_sp", "number", "Near the saddle points between them."),
    _STATUS,
    _REASON,
)

LAYER_COLUMN_COLUMNS = (
    *COLUMN_COLUMNS[:1],
    Column("layer", "count", "The layer of the stack that the column belongs to, 1 or 2."),
    Column("material", "text", "Its material."),
    *COLUMN_COLUMNS[1:],
)

DEFECT_COLUMNS = (
    _IMAGE,
    _FRAME,
    Column("defect_id", "count", "Number of the row, from top to bottom."),
    Column(
        "kind",
        "text",
        "V_W, V_Se, V_Se2, W_Se2, Se_W, O_Se …; X_W for a dopant of unknown element; hole, contamination or disorder "
        "for what is larger than a point.",
    ),
    Column("kind_p", "number", "Probability of the kind."),
    _ROW,
    _COL,
    _X,
    _Y,
    _SUBLATTICE,
    Column("z_score", "number", "How far the site's brightness deviates, in units of the usual scatter."),
    Column("intensity_ratio", "number", "Brightness of the site over the usual one."),
    Column("track_id", "count", "The track the row belongs to; empty outside movies."),
    _STATUS,
    _REASON,
)

TRACK_COLUMNS = (
    _IMAGE,
    Column("track_id", "count", "The same number for the same defect in all frames."),
    _FRAME,
    Column("time_s", "number", "Time since the first frame; empty if unknown.", "s"),
    Column("kind", "text", "As in a defect table."),
    Column("kind_p", "number", "Probability of the kind."),
    _ROW,
    _COL,
    Column("x_nm", "number", "In the specimen as the first frame shows it, drift removed.", "nm"),
    Column("y_nm", "number", "In the specimen as the first frame shows it, drift removed.", "nm"),
    _SUBLATTICE,
    Column("intensity_ratio", "number", "Brightness of the site over the usual one."),
    Column("site", "text", "The lattice site: two cell numbers and the sublattice, the same in all frames."),
)

EVENT_COLUMNS = (
    _IMAGE,
    Column(
        "event",
        "text",
        "appearance, disappearance, hop, transformation, or entered and left at the border of the field.",
    ),
    Column("track_id", "count", "The track it happened to."),
    Column("frame", "count", "The first frame after it."),
    Column("time_s", "number", "Time of that frame; empty if unknown.", "s"),
    Column("kind", "text", "The defect before the event."),
    Column("kind_after", "text", "The defect after it."),
    _X,
    _Y,
    Column("distance_nm", "number", "Length of a hop.", "nm"),
)
