//! Where answers are handed on to that somebody else can give as well, such as the kernel.

use super::cache::Entry;

/// Takes answers that were given, to give them itself from then on.
///
/// Both calls come from the middle of answering a query: they must not wait.
pub trait AnswerSink: Send + Sync {
    /// `entry` was given to a client and is fresh. It comes again with every query that the sink has not answered by
    /// itself; when it may be given is for the sink to see ([`Entry::expires`]).
    fn offer(&self, entry: &Entry);

    /// Clients that were given `entry` by the sink, as far as it knows. Asked for only when that decides something.
    fn given(&self, _entry: &Entry) -> u32 {
        0
    }

    /// Nothing that was offered so far may be given any more.
    fn forget_all(&self);
}
