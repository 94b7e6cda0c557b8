//! What is said of changes of a configuration.

use std::borrow::Cow;

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
};

/// The change of the member `node_id`.
pub fn new_conf_change_single(node_id: u64, ty: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type: ty as i32,
        node_id,
    }
}

/// The changes in a text such as `v1 l2 r3`: 1 becomes a voter, 2 a learner, 3 leaves.
///
/// # Errors
/// Which word is none of these.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    text.split_ascii_whitespace()
        .map(|word| {
            let (kind, id) = word.split_at_checked(1).unwrap_or((word, ""));
            let ty = match kind {
                "v" => ConfChangeType::AddNode,
                "l" => ConfChangeType::AddLearnerNode,
                "r" => ConfChangeType::RemoveNode,
                _ => return Err(format!("{word} begins with none of v, l and r")),
            };
            let id = id.parse().map_err(|e| format!("{word}: {e}"))?;
            Ok(new_conf_change_single(id, ty))
        })
        .collect()
}

/// The text that [`parse_conf_change`] reads as these changes.
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let words: Vec<_> = changes
        .iter()
        .map(|change| {
            let kind = match change.get_change_type() {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{kind}{}", change.node_id)
        })
        .collect();
    words.join(" ")
}

/// Either form of a change.
pub trait ConfChangeI {
    /// It, in the newer form.
    fn into_v2(self) -> ConfChangeV2;

    /// It, in the newer form.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// It, if it is of the older form.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![new_conf_change_single(self.node_id, self.get_change_type())],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// The change in the content of an entry.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode_bytes(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        prost::Message::decode(bytes)
    }

    /// Whether the change goes by a joint configuration, and then whether that is left without
    /// being asked. More than one member at a time always does.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.get_transition() {
            ConfChangeTransition::Explicit => Some(false),
            ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Auto if self.changes.len() > 1 => Some(true),
            ConfChangeTransition::Auto => None,
        }
    }

    /// Whether it leaves a joint configuration: it says nothing, whatever its context is.
    pub fn leave_joint(&self) -> bool {
        self.get_transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_changes_are_two_forms_of_one_thing() {
        let changes = parse_conf_change(" v1 l22  r333 ").expect("three good words");
        assert_eq!(stringify_conf_change(&changes), "v1 l22 r333");
        assert_eq!(parse_conf_change(""), Ok(Vec::new()));
        for bad in ["x1", "v", "v-1", "vä", "ä1"] {
            assert!(parse_conf_change(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn several_members_or_the_wish_for_it_go_by_a_joint_configuration() {
        let change = |text: &str, transition: ConfChangeTransition| ConfChangeV2 {
            transition: transition as i32,
            changes: parse_conf_change(text).expect("good words"),
            ..ConfChangeV2::default()
        };
        use ConfChangeTransition::{Auto, Explicit, Implicit};
        assert_eq!(change("v1", Auto).enter_joint(), None);
        assert_eq!(change("v1 r2", Auto).enter_joint(), Some(true));
        assert_eq!(change("v1", Implicit).enter_joint(), Some(true));
        assert_eq!(change("v1", Explicit).enter_joint(), Some(false));
        assert!(change("", Auto).leave_joint());
        assert!(!change("", Explicit).leave_joint() && !change("v1", Auto).leave_joint());
    }
}
