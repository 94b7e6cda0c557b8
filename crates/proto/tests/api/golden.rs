//! Committed lines against those of today.

use std::collections::BTreeSet;

/// Compares `lines` with the golden file `name`. With `TIDELOG_BLESS=1` lines that are new are
/// added to it; nothing is ever taken away.
pub(crate) fn check(name: &str, lines: &[String]) {
    let path = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let is_blessed = std::env::var_os("TIDELOG_BLESS").is_some_and(|value| value == "1");
    let committed = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if is_blessed => String::new(),
        Err(error) => panic!("{path}: {error}"),
    };
    if let Err(difference) = compare(&committed, lines, is_blessed) {
        panic!("{path}: {difference}");
    }
    if is_blessed {
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
}

fn compare(committed: &str, lines: &[String], may_grow: bool) -> Result<(), String> {
    let committed: BTreeSet<&str> = committed.lines().collect();
    let now: BTreeSet<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(now.len(), lines.len(), "a line stands twice: {lines:#?}");
    let list = |lines: Vec<&&str>| {
        lines
            .iter()
            .map(|line| format!("\n  {line}"))
            .collect::<String>()
    };
    let gone: Vec<_> = committed.difference(&now).collect();
    let new: Vec<_> = now.difference(&committed).collect();
    if !gone.is_empty() {
        return Err(format!(
            "this breaks clients in use; gone:{}\nnew:{}",
            list(gone),
            list(new)
        ));
    }
    if !new.is_empty() && !may_grow {
        return Err(format!(
            "new lines, to be added with TIDELOG_BLESS=1:{}",
            list(new)
        ));
    }
    Ok(())
}

#[test]
fn lines_are_added_and_never_changed() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let committed = "field A 1 uint32 x\nfield A 2 string y\n";
    compare(committed, &lines(committed), false).unwrap();
    let grown = lines("field A 1 uint32 x\nfield A 2 string y\nfield A 3 bool z");
    let error = compare(committed, &grown, false).unwrap_err();
    assert!(error.contains("field A 3 bool z") && error.contains("TIDELOG_BLESS=1"));
    compare(committed, &grown, true).unwrap();
    for broken in [
        "field A 1 uint32 x",
        "field A 1 uint32 x\nfield A 3 string y",
        "field A 1 uint64 x\nfield A 2 string y",
    ] {
        for may_grow in [false, true] {
            let error = compare(committed, &lines(broken), may_grow).unwrap_err();
            assert!(error.contains("breaks clients"), "{error}");
        }
    }
}
