//! The answers that the kernel gives by itself: what it may answer, and how it fared.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use interceptor_ebpf::Pass;
use interceptor_ebpf::answer::{Entry, Parts, Permit};
use interceptor_ebpf::digest::Secret;
use interceptor_ebpf::question::{KEY_CHECKING_DISABLED, KEY_DNSSEC_OK, Key};
use nix::time::{ClockId, clock_gettime};

use super::plain::Plain;

/// The map of answers. Shared: all it does is one system call each.
pub struct Answers {
    state: Mutex<State>,
    /// The same map, for who has no business with the rest of the state.
    reading: HashMap<MapData, u64, Plain<Entry>>,
    passes: PerCpuArray<MapData, u64>,
    /// 0 where none are given.
    capacity: AtomicU32,
}

struct State {
    entries: HashMap<MapData, u64, Plain<Entry>>,
    global: Array<MapData, Plain<Permit>>,
    permit: Permit,
}

/// What the kernel was told last of which answers count: those that are offered with it are taken until
/// [all are forgotten](Answers::forget_all) the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edition(Permit);

impl Edition {
    /// What the kernel was told.
    pub fn permit(self) -> Permit {
        let Self(permit) = self;
        permit
    }
}

/// How often the kernel has given the answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Name (lower-cased), type and class in wire form.
    pub question: Vec<u8>,
    /// Whether DNSSEC records were asked for (DO).
    pub dnssec_ok: bool,
    /// Whether validation was declined (CD).
    pub checking_disabled: bool,
    /// Since it was put into the map.
    pub times: u64,
}

/// Whether a client's reply went into the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It did.
    Kept,
    /// It is too large, has too many records, or is from before a flush.
    Unfit,
}

impl Answers {
    /// Takes the maps out of a loaded object; `capacity` is the size in answers that it was loaded with.
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32) -> Result<Self> {
        let entries = super::take_map(ebpf, "ANSWERS")?;
        let reading = match &entries {
            Map::LruHashMap(data) => {
                let again = data.fd().as_fd().try_clone_to_owned()?;
                Map::LruHashMap(MapData::from_fd(again)?)
            }
            _ => bail!("its map ANSWERS does not forget what is not used"),
        };
        let mut state = State {
            entries: HashMap::try_from(entries)?,
            global: Array::try_from(super::take_map(ebpf, "PERMIT")?)?,
            permit: Permit::default(),
        };
        if capacity > 0 {
            state.permit.secret = Secret {
                first: rand::random(),
                stride: rand::random(),
            };
            state.renew()?;
        }
        Ok(Self {
            state: Mutex::new(state),
            reading: HashMap::try_from(reading)?,
            passes: PerCpuArray::try_from(super::take_map(ebpf, "PASSES")?)?,
            capacity: AtomicU32::new(capacity),
        })
    }

    /// Answers that there is room for; 0 where none are given.
    pub fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Has none given from here on, for programs that cannot.
    pub(super) fn give_up(&self) -> Result<()> {
        self.capacity.store(0, Ordering::Relaxed);
        let mut state = self.state();
        state.permit.generation = 0;
        state.tell()
    }

    /// Kernel memory in bytes that the map takes from the start, about.
    pub fn memory(&self) -> u64 {
        u64::from(self.capacity()) * Self::entry_memory()
    }

    /// What holds at the moment. An answer that might be forgotten between this call and the offer must have been looked up
    /// after this call; the DNS service lets nothing be forgotten while it offers.
    pub fn edition(&self) -> Edition {
        Edition(self.state().permit)
    }

    /// Lets the kernel give the answer that is made of `parts` to everybody who asks `key`.
    ///
    /// Fails where the kernel refuses the map's element.
    pub fn offer(&self, Edition(permit): Edition, key: &Key, parts: &Parts<'_>) -> Result<Offer> {
        let Some(entry) = Entry::new(key, permit, parts) else {
            return Ok(Offer::Unfit);
        };
        let mut state = self.state();
        if permit.generation == 0 || permit != state.permit {
            return Ok(Offer::Unfit);
        }
        state
            .entries
            .insert(place(key, permit), Plain(entry), 0)
            .context("cannot write an answer into the kernel")?;
        Ok(Offer::Kept)
    }

    /// Answers in the map, those that have expired or are outdated included. Goes through all of them.
    pub fn count(&self) -> u64 {
        let capacity = self.capacity() as usize;
        self.reading.keys().take(capacity).flatten().count() as u64
    }

    /// How often the kernel has given the answer to `key`; `None` where it has none, or one that is outdated.
    pub fn hits(&self, key: &Key) -> Option<u64> {
        let permit = self.state().permit;
        let Plain(entry) = self.reading.get(&place(key, permit), 0).ok()?;
        (entry.is_of(key) && entry.generation == permit.generation).then_some(entry.hits)
    }

    /// Tells of every answer that the kernel has given, and how often. Goes through all that are in the map, for as long as
    /// `goes_on` says so, which is asked before each.
    pub fn given(&self, goes_on: impl Fn() -> bool, mut tell: impl FnMut(&Given)) {
        let generation = self.state().permit.generation;
        let capacity = self.capacity() as usize;
        let entries = self.reading.iter().take(capacity);
        for (_, Plain(entry)) in entries.take_while(|_| goes_on()).flatten() {
            if entry.generation == generation && entry.hits > 0 {
                tell(&Given::of(&entry));
            }
        }
    }

    /// Questions that the kernel has answered.
    pub fn answered(&self) -> Result<u64> {
        self.passed(Pass::Answered)
    }

    /// Kernel memory in bytes that an answer takes.
    pub fn entry_memory() -> u64 {
        // Its own header, and that of a bucket, of which there are as many.
        const HEADERS: usize = 48 + 16;
        (size_of::<u64>() + size_of::<Entry>() + HEADERS) as u64
    }

    /// Takes the answer to `key` out.
    pub fn remove(&self, key: &Key) {
        let mut state = self.state();
        let place = place(key, state.permit);
        // Not there is as good as removed.
        let _ = state.entries.remove(&place);
    }

    /// Makes every answer there is unusable, in one write.
    pub fn forget_all(&self) -> Result<()> {
        if self.capacity() == 0 {
            return Ok(());
        }
        self.state().renew()
    }

    /// Questions by how they fared.
    pub fn passes(&self) -> Result<BTreeMap<&'static str, u64>> {
        Pass::ALL
            .into_iter()
            .map(|pass| Ok((pass.name(), self.passed(pass)?)))
            .collect()
    }

    fn passed(&self, pass: Pass) -> Result<u64> {
        let values = self.passes.get(&(pass as u32), 0)?;
        Ok(values.iter().sum())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    /// Of an entry that may be torn: then it is about another question, or none.
    fn of(entry: &Entry) -> Self {
        let [qtype, qclass, _, flags] = [48, 32, 16, 0].map(|shift| (entry.kind >> shift) as u16);
        let key = Key {
            name: entry.name,
            qtype,
            qclass,
            ..Key::EMPTY
        };
        let mut question: Vec<u8> = entry.name.into_iter().flat_map(u64::to_ne_bytes).collect();
        question.truncate(key.name_length());
        question.extend(qtype.to_be_bytes());
        question.extend(qclass.to_be_bytes());
        Self {
            question,
            dnssec_ok: flags & KEY_DNSSEC_OK != 0,
            checking_disabled: flags & KEY_CHECKING_DISABLED != 0,
            times: entry.hits,
        }
    }
}

impl State {
    fn renew(&mut self) -> Result<()> {
        self.permit.generation = rand::random_range(1..=u64::MAX);
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        self.global
            .set(0, Plain(self.permit), 0)
            .context("cannot tell the kernel that its answers are outdated")
    }
}

/// What the kernel keeps the answer to `key` under.
fn place(key: &Key, permit: Permit) -> u64 {
    key.digest(key.name_length(), permit.secret).sum
}

/// The boot clock, which goes on while the machine sleeps, in nanoseconds: the time of entries.
pub fn boot_clock() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}
