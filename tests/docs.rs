//! What the docs name must exist.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every `path: function` of the table of faults is a test that exists.
#[test]
fn every_test_in_the_table_of_faults_exists() {
    let table = read(&root().join("docs/faults.md"));
    let mut rows = 0;
    for row in table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains(".rs: "))
    {
        let named = row.rsplit('`').nth(1).unwrap();
        let (path, function) = named.split_once(": ").unwrap();
        let source = read(&root().join(path));
        assert!(
            source.contains(&format!("fn {function}(")),
            "{named} does not exist"
        );
        rows += 1;
    }
    assert!(rows >= 10, "the table has {rows} rows that name a test");
}

/// Every link from a page to a file of the repository leads somewhere.
#[test]
fn links_lead_to_files() {
    let mut pages = vec![root().join("README.md")];
    for dir in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(dir)).unwrap();
        pages.extend(entries.map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    for page in pages {
        for link in read(&page).split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().unwrap().join(link);
            assert!(target.exists(), "{} links to {link}", page.display());
        }
    }
}

/// Every topic setting is in its page, with its default.
#[test]
fn every_topic_setting_is_documented() {
    let page = read(&root().join("docs/topic-settings.md"));
    for spec in tidelog_controller::setting_specs() {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", spec.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not documented", spec.name));
        let default = row.split('|').nth(2).unwrap().trim().trim_matches('`');
        assert_eq!(default, spec.default, "{}", spec.name);
    }
}
