//! The images of `materials/` by name, in order; each is embedded in the program.

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        &[$((
            $name,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/materials/", $name, ".jpg")),
        )),*]
    };
}

/// Name and JPEG file of every image.
#[rustfmt::skip]
pub(super) const FILES: &[(&str, &[u8])] = embed![
    "art-africa001", "art-africa003", "art-africa007", "art-africa010", "art-africa011",
    "art-africa012", "art-africa013", "art-africa014", "art-japan002", "art-japan003",
    "art-japan004", "art-japan005", "art-japan006", "art-japan007", "art-japan008",
    "art-japan009", "art-japan010", "art-japan011", "art-japan012", "art-japan013",
    "art-japan014", "barrel-side", "barrel-top2", "carpet008", "carpet009", "carpet010",
    "carpet011", "carpet012", "carpet018", "carpet021", "carpet023", "carpet025", "crate1e",
    "desert009", "dirt002", "dirt003", "door009", "dragon003", "floor-wood01", "floor005",
    "floor2a", "grate1a", "ice001", "jungle001", "jungle002", "metal01", "metal02", "metall006",
    "paving001", "pipes001", "pipes002", "pipes003", "pipez1a", "potatoes", "railway",
    "rock017", "rock018", "roof004", "s-wood003", "solar", "stone001", "tile01", "tile02",
    "tile03", "tile5e", "trak4-brick1", "trak4-brick2", "trak4-brick2a", "trak4-brick2b",
    "trak4-concrete1a", "trak4-concrete1b", "trak4-concrete2a", "trak4-concrete3",
    "trak4-concrete4a", "trak4-concrete4b", "trak4-concrete5a", "trak4-door1", "trak4-door1c",
    "trak4-door1e", "trak4-grate1", "trak4-plaster3b", "trak4-plaster3c-3", "trak4-trim1c",
    "traktor2", "trisec1b", "trisec1c", "vertpanel1d", "vertpanel1e", "vertpanel2d",
    "vertpanel2e", "wall1e", "wall4a", "wall4b", "wall4c", "wall4d", "wall7a", "wood003",
    "yellowcamelcrossing", "yellowroadcrossingsign", "yellowtwowaysign", "yellowtwowaysignback",
];
