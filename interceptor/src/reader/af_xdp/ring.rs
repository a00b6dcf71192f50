//! Rings in memory that the kernel and this process share: one side produces, the other consumes.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory from mmap(2), readable and writable; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: memory that no thread owns; what is in it is accessed by whoever holds the part.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared mapping gives out nothing but addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Fresh memory.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Memory that the kernel shares by a descriptor, from `offset` on.
    pub(super) fn shared(fd: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::map(length, flags, fd.as_raw_fd(), offset)
    }

    fn map(length: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: asks for memory wherever there is room for it, and so takes nothing away from anybody.
        let address = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, fd, offset) };
        match NonNull::new(address.cast()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self {
                address: start,
                length,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where `length` bytes begin `offset` bytes into the memory; none where they do not fit.
    pub(super) fn part(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: within the mapping, as just seen.
        Some(unsafe { self.address.add(offset) })
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    fn typed<T>(&self, offset: usize, count: usize) -> io::Result<NonNull<T>> {
        let part = self.part(offset, count * size_of::<T>());
        let part = part
            .map(NonNull::cast::<T>)
            .filter(|part| part.is_aligned());
        part.ok_or_else(|| io::Error::other("the kernel's ring does not fit its memory"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whatever points into it holds it.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}

/// Where a ring's parts are in its memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) entries: usize,
    /// Entries; a power of two.
    pub(super) size: u32,
}

#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    _memory: Mapping,
    _entries: PhantomData<T>,
}

// SAFETY: points into memory that it owns, and of which the other side accesses only what is its turn.
unsafe impl<T: Copy + Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    fn new(memory: Mapping, layout: Layout) -> io::Result<Self> {
        if !layout.size.is_power_of_two() {
            return Err(io::Error::other("a ring's size is a power of two"));
        }
        Ok(Self {
            producer: memory.typed(layout.producer, 1)?,
            consumer: memory.typed(layout.consumer, 1)?,
            entries: memory.typed(layout.entries, layout.size as usize)?,
            mask: layout.size - 1,
            _memory: memory,
            _entries: PhantomData,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: within our memory, and aligned; both sides access it atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the mask keeps it within the entries.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }
}

/// The side of a ring that this process fills.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Where the next entry goes; what is before it and not published yet is ours alone.
    next: u32,
}

impl<T: Copy> Producer<T> {
    pub(super) fn new(memory: Mapping, layout: Layout) -> io::Result<Self> {
        let ring = Ring::new(memory, layout)?;
        let next = ring.producer().load(Ordering::Relaxed);
        Ok(Self { ring, next })
    }

    /// Adds an entry, which the other side sees after [`publish`](Self::publish); false when there is no room.
    pub(super) fn push(&mut self, entry: T) -> bool {
        let consumed = self.ring.consumer().load(Ordering::Acquire);
        if self.next.wrapping_sub(consumed) > self.ring.mask {
            return false;
        }
        // SAFETY: the other side has consumed what was there, and reads nothing that is not published.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows the other side what was added.
    pub(super) fn publish(&self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Whether the other side has consumed all that was published.
    pub(super) fn is_drained(&self) -> bool {
        self.ring.consumer().load(Ordering::Acquire) == self.next
    }
}

/// The side of a ring that this process empties.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    next: u32,
    /// How far the other side was seen to have come.
    known: u32,
}

impl<T: Copy> Consumer<T> {
    pub(super) fn new(memory: Mapping, layout: Layout) -> io::Result<Self> {
        let ring = Ring::new(memory, layout)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        Ok(Self {
            ring,
            next,
            known: next,
        })
    }

    /// The next entry, if there is one.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        // SAFETY: published and not released: the other side leaves it alone.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&mut self) -> bool {
        if self.next == self.known {
            self.known = self.ring.producer().load(Ordering::Acquire);
        }
        self.next == self.known
    }

    /// Lets the other side use the room of what was taken.
    pub(super) fn release(&self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::{AsFd as _, OwnedFd};

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use proptest::prelude::*;

    use super::*;

    const LENGTH: usize = 4096;
    const LAYOUT: Layout = Layout {
        producer: 0,
        consumer: 64,
        entries: 128,
        size: 8,
    };

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push,
        Publish,
        Pop,
        Release,
    }

    proptest! {
        /// As the kernel sees it: what is published arrives once and in order, nothing is overwritten before it is
        /// released, and counters may wrap.
        #[test]
        fn both_sides_agree_on_what_is_in_the_ring(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 3), any::<u32>()],
            steps in prop::collection::vec(
                prop::sample::select(vec![Step::Push, Step::Publish, Step::Pop, Step::Release]),
                0..200,
            ),
        ) {
            let (mut producer, mut consumer) = ends(start);
            let (mut next, mut pushed, mut published) = (0u64, VecDeque::new(), VecDeque::new());
            let (mut unreleased, mut held) = (0, 0);
            for step in steps {
                match step {
                    Step::Push => {
                        let has_room = held < LAYOUT.size;
                        prop_assert_eq!(producer.push(next), has_room);
                        if has_room {
                            pushed.push_back(next);
                            held += 1;
                        }
                        next += 1;
                    }
                    Step::Publish => {
                        producer.publish();
                        published.append(&mut pushed);
                    }
                    Step::Pop => {
                        prop_assert_eq!(consumer.is_empty(), published.is_empty());
                        let expected = published.pop_front();
                        unreleased += u32::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    }
                    Step::Release => {
                        consumer.release();
                        held -= unreleased;
                        unreleased = 0;
                    }
                }
                prop_assert_eq!(producer.is_drained(), held == 0);
            }
        }
    }

    #[test]
    fn a_part_that_does_not_fit_is_not_given_out() {
        let memory = Mapping::anonymous(LENGTH).unwrap();
        assert!(memory.part(0, LENGTH).is_some());
        assert!(memory.part(LENGTH, 0).is_some());
        assert!(memory.part(1, LENGTH).is_none());
        assert!(memory.part(usize::MAX, 2).is_none());
    }

    #[test]
    fn a_ring_whose_layout_is_unsound_is_refused() {
        for layout in [
            Layout { size: 6, ..LAYOUT },
            Layout {
                size: 4096,
                ..LAYOUT
            },
            Layout {
                producer: 2,
                ..LAYOUT
            },
            Layout {
                consumer: LENGTH,
                ..LAYOUT
            },
        ] {
            let memory = Mapping::anonymous(LENGTH).unwrap();
            assert!(Producer::<u64>::new(memory, layout).is_err(), "{layout:?}");
        }
    }

    /// Two mappings of the same memory, whose counters begin at `start`.
    fn ends(start: u32) -> (Producer<u64>, Consumer<u64>) {
        let memory: OwnedFd = memfd_create("ring", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&memory, 4096).unwrap();
        let map = || Mapping::shared(memory.as_fd(), 0, LENGTH).unwrap();
        let setup = Ring::<u64>::new(map(), LAYOUT).unwrap();
        setup.producer().store(start, Ordering::Relaxed);
        setup.consumer().store(start, Ordering::Relaxed);
        (
            Producer::new(map(), LAYOUT).unwrap(),
            Consumer::new(map(), LAYOUT).unwrap(),
        )
    }
}
