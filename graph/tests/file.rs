//! `NAME.weft` on disk: what is written is read, and anything else is refused with a reason.

mod sample;

use weft_graph::{Graph, Reason};

#[test]
fn what_is_saved_is_opened() {
    let folder = std::env::temp_dir().join(format!("weft-graph-file-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("toy.weft");
    sample::graph().save(&path).unwrap();
    assert_eq!(Graph::inspect(&path).unwrap(), sample::graph());
    let left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["toy.weft"]);
    let missing = Graph::open(&folder.join("none.weft")).unwrap_err();
    assert!(matches!(missing.reason, Reason::Io(_)), "{missing}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    assert_eq!(sample::graph().to_bytes(), sample::graph().to_bytes());
}

#[test]
fn every_truncation_is_refused() {
    let file = sample::graph().to_bytes();
    for count in 0..file.len() {
        assert!(Graph::from_bytes(&file[..count]).is_err(), "the first {count} bytes");
    }
}

#[test]
fn every_changed_bit_is_refused() {
    let mut file = sample::graph().to_bytes();
    for position in 0..file.len() {
        for bit in 0..8 {
            file[position] ^= 1 << bit;
            assert!(Graph::from_bytes(&file).is_err(), "bit {bit} of byte {position}");
            file[position] ^= 1 << bit;
        }
    }
}

#[test]
fn a_longer_file_is_refused() {
    let mut file = sample::graph().to_bytes();
    file.push(0);
    assert!(matches!(Graph::from_bytes(&file), Err(Reason::Damaged { .. })));
}

#[test]
fn another_version_names_the_command() {
    let mut file = sample::graph().to_bytes();
    file[8] = 7;
    let error = Graph::from_bytes(&file).unwrap_err().to_string();
    assert_eq!(
        error,
        "the file has format 7, this program reads format 2; compile it again with \
         `weft compile toy.model --for eval -o toy.weft`"
    );
}

#[test]
fn a_damaged_section_is_named() {
    let mut file = sample::graph().to_bytes();
    *file.last_mut().unwrap() ^= 1;
    let error = Graph::from_bytes(&file).unwrap_err().to_string();
    assert_eq!(
        error,
        "section 2 (constant) is damaged; compile it again with \
         `weft compile toy.model --for eval -o toy.weft`"
    );
}

#[test]
fn something_else_is_not_a_graph() {
    for other in [&b""[..], b"{}", b"\x7fELF\x02\x01\x01"] {
        assert!(matches!(Graph::from_bytes(other), Err(Reason::NotAGraph)));
    }
}
