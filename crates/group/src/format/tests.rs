//! The formats against the golden files, whose good bytes Kafka's own classes have written; and the
//! decoder against everything else.

mod golden;
mod random;

/// The key and the value of a golden file: hexadecimal after `[key]` and `[value]`, comments from `#`
/// on. Without `[value]` there is none.
fn golden(name: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    let path = format!("{}/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line {
            "[key]" => assert!(parts.is_empty(), "{path}: the key is first"),
            "[value]" => assert_eq!(parts.len(), 1, "{path}: the value is second"),
            _ => {
                let bytes = line.split_whitespace().map(|byte| {
                    u8::from_str_radix(byte, 16).unwrap_or_else(|e| panic!("{path}, {byte}: {e}"))
                });
                match parts.last_mut() {
                    Some(part) => part.extend(bytes),
                    None => assert_eq!(bytes.count(), 0, "{path}: bytes before the key"),
                }
                continue;
            }
        }
        parts.push(Vec::new());
    }
    let mut parts = parts.into_iter();
    let key = parts.next().unwrap_or_else(|| panic!("{path}: no key"));
    (key, parts.next())
}

/// The names of all golden files.
fn golden_names() -> Vec<String> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut names: Vec<String> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}
