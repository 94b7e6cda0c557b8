//! How many bytes the client lets the broker send.

/// The credit of one stream.
///
/// Without credit nothing is delivered. With any, however little, one message is: a batch is not
/// cut, so it may take more than there is. The credit is negative then, and the next message waits
/// until grants have made it positive again. Over time no more is sent than was granted and one
/// batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit {
    /// `None`: credit does not count.
    left: Option<i64>,
}

impl Credit {
    pub(super) fn new(is_limited: bool, granted: u64) -> Self {
        Self {
            left: is_limited.then(|| clamped(granted)),
        }
    }

    /// Adds what the client grants.
    pub(super) fn grant(&mut self, granted: u64) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_add(clamped(granted));
        }
    }

    /// Counts what was sent.
    pub(super) fn spend(&mut self, sent: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(i64::try_from(sent).unwrap_or(i64::MAX));
        }
    }

    /// How many of `wanted` bytes may be sent now; `None`: nothing.
    pub(super) fn allows(&self, wanted: usize) -> Option<usize> {
        match self.left {
            None => Some(wanted),
            Some(left) if left <= 0 => None,
            Some(left) => Some(usize::try_from(left).map_or(wanted, |left| left.min(wanted))),
        }
    }
}

fn clamped(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credit_allows_nothing_and_any_allows_one_message() {
        let mut credit = Credit::new(true, 0);
        assert_eq!(credit.allows(100), None);
        credit.grant(1);
        assert_eq!(credit.allows(100), Some(1));
        credit.spend(80);
        assert_eq!(credit.allows(100), None);
        credit.grant(79);
        assert_eq!(credit.allows(100), None, "the debt is paid, no more");
        credit.grant(30);
        assert_eq!(credit.allows(100), Some(30));
        credit.grant(u64::MAX);
        credit.grant(u64::MAX);
        assert_eq!(credit.allows(100), Some(100));
    }

    #[test]
    fn unlimited_credit_stays_so() {
        let mut credit = Credit::new(false, 0);
        credit.spend(usize::MAX);
        credit.grant(1);
        assert_eq!(credit.allows(7), Some(7));
    }
}
