//! Brokers by their numbers, and their data directories.

/// Why a text names no brokers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodesError {
    #[error("{text:?} is no list of brokers; expected numbers with commas, such as 1,2,3")]
    List { text: String },
    #[error(
        "{text:?} is no assignment; expected the brokers of each partition with slashes between, \
         such as 1,2,3/2,3,1"
    )]
    Assignment { text: String },
    #[error("{text:?} is no data directory; expected 32 digits of 0-9a-f, as the broker says them")]
    Directory { text: String },
}

/// Brokers, the preferred leader first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes(pub(crate) Vec<u32>);

/// The brokers of each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment(pub(crate) Vec<Vec<u32>>);

/// `1,2,3`.
pub(crate) fn parse_nodes(text: &str) -> Result<Nodes, NodesError> {
    numbers(text).map(Nodes).ok_or_else(|| NodesError::List {
        text: text.to_owned(),
    })
}

/// `1,2,3/2,3,1`.
pub(crate) fn parse_assignment(text: &str) -> Result<Assignment, NodesError> {
    let partitions: Option<_> = text.split('/').map(numbers).collect();
    partitions
        .map(Assignment)
        .ok_or_else(|| NodesError::Assignment {
            text: text.to_owned(),
        })
}

/// The 16 bytes of a data directory's id.
pub(crate) fn parse_directory(text: &str) -> Result<[u8; 16], NodesError> {
    let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let number = is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten();
    number
        .map(u128::to_be_bytes)
        .ok_or_else(|| NodesError::Directory {
            text: text.to_owned(),
        })
}

/// Bytes as [`parse_directory`] reads them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split(',')
        .map(|number| number.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order() {
        assert_eq!(parse_nodes("3,1,2"), Ok(Nodes(vec![3, 1, 2])));
        assert_eq!(parse_nodes("7"), Ok(Nodes(vec![7])));
        for text in ["", "1,", ",1", "a", "1;2", "-1"] {
            assert!(parse_nodes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn assignments_have_a_list_a_partition() {
        let assignment = Assignment(vec![vec![1, 2, 3], vec![2, 3, 1]]);
        assert_eq!(parse_assignment("1,2,3/2,3,1"), Ok(assignment));
        for text in ["", "1/", "1//2", "1,2/x"] {
            assert!(parse_assignment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directories_have_16_bytes() {
        let text = "000102030405060708090a0b0c0d0e0f";
        let bytes: Vec<u8> = (0..16).collect();
        assert_eq!(parse_directory(text).unwrap()[..], bytes);
        assert_eq!(hex(&bytes), text);
        for text in [
            "",
            "00",
            &format!("+{}", &text[1..]),
            &text.replace('f', "g"),
        ] {
            assert!(parse_directory(text).is_err(), "{text}");
        }
    }
}
