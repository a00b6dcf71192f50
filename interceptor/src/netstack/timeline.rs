//! Moments to come back to, in order, for many flows at once.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::service::Flow;

/// Removals are lazy: an item stays until its moment comes or until the dead outnumber the living, so that every
/// operation costs the logarithm of the number of flows, spread over many.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    heap: BinaryHeap<Reverse<Item>>,
}

/// A moment, and whose it is; `id` tells one life of a flow, or one arming of its timer, from the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) at: Instant,
    pub(super) flow: Flow,
    pub(super) id: u64,
}

impl Timeline {
    pub(super) fn push(&mut self, item: Item) {
        self.heap.push(Reverse(item));
    }

    /// Takes the earliest item.
    pub(super) fn pop(&mut self) -> Option<Item> {
        self.heap.pop().map(|Reverse(item)| item)
    }

    /// Takes the earliest item if its moment has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Item> {
        if self.next()? > now {
            return None;
        }
        self.pop()
    }

    /// Drops dead items once there are more of them than of `living` ones, at least as many as items are alive.
    pub(super) fn tidy(&mut self, living: usize, is_alive: impl Fn(&Item) -> bool) {
        const SLACK: usize = 64;
        if self.heap.len() > 2 * living + SLACK {
            self.heap.retain(|Reverse(item)| is_alive(item));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The earliest moment.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(item)| item.at)
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.id).cmp(&(other.at, other.id))
    }
}
