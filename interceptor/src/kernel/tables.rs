//! The rules in the kernel: two banks of them, of which one counts, so that a ruleset changes in one step.

use std::hash::Hash;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap as KernelMap, MapData, MapError};
use interceptor_ebpf::control::ANY_PORTS;
use interceptor_ebpf::rules::{Destination, ExactKey, PortKey, PrefixKey};
use interceptor_ebpf::{Address, Control};

use super::plain::{Plain, PlainControl};
use crate::hash::HashMap;
use crate::rules::Compiled;

type PrefixMap = LpmTrie<MapData, Plain<PrefixKey>, Plain<Destination>>;

/// The maps with the rules, and the global data that says which bank counts.
pub(super) struct Tables {
    exact: KernelMap<MapData, Plain<ExactKey>, Plain<Destination>>,
    prefixes: PrefixMap,
    ports: KernelMap<MapData, Plain<PortKey>, u32>,
    global: Array<MapData, PlainControl>,
    control: Box<Control>,
    banks: [Bank; 2],
}

/// What a bank holds at the moment.
#[derive(Default)]
struct Bank {
    exact: Mirror<Address, Destination>,
    prefixes: Mirror<(Address, u8), Destination>,
    ports: Mirror<(u32, u8, u16), u32>,
}

/// What one bank of one map holds, so that a change writes only what differs.
struct Mirror<K, V>(HashMap<K, V>);

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut tables = Self {
            exact: KernelMap::try_from(super::take_map(ebpf, "EXACT")?)?,
            prefixes: LpmTrie::try_from(super::take_map(ebpf, "PREFIXES")?)?,
            ports: KernelMap::try_from(super::take_map(ebpf, "PORTS")?)?,
            global: Array::try_from(super::take_map(ebpf, ".bss")?)
                .context("the BPF object's global data is not what this daemon writes")?,
            control: Box::new(Control::EMPTY),
            banks: [Bank::default(), Bank::default()],
        };
        tables.write_global()?;
        Ok(tables)
    }

    /// Writes `rules` into the bank that does not count. Waits for packets that are still looked up there.
    pub(super) fn stage(&mut self, rules: &Compiled) -> Result<()> {
        super::grace::wait_for_running_programs();
        self.fill(self.next(), rules)
            .context("cannot write the rules into the kernel")
    }

    /// Makes `rules`, which were staged last, the ones that count.
    pub(super) fn switch(&mut self, rules: &Compiled) -> Result<()> {
        let next = self.next();
        self.control.filters[next as usize].clone_from(&rules.filter);
        self.write_global()?;
        let any_ports = rules.filter.head.any_ports != 0;
        self.control.active = next | if any_ports { ANY_PORTS } else { 0 };
        self.write_global()
    }

    /// Changes the global data other than the rules.
    pub(super) fn configure(&mut self, change: impl FnOnce(&mut Control)) -> Result<()> {
        change(&mut self.control);
        self.write_global()
    }

    fn next(&self) -> u32 {
        (self.control.active & 1) ^ 1
    }

    fn fill(&mut self, bank: u32, rules: &Compiled) -> Result<()> {
        let held = &mut self.banks[bank as usize];
        held.exact.sync(&rules.exact, |address, entry| {
            let key = Plain(ExactKey { address, bank });
            match entry {
                Some(entry) => self.exact.insert(key, Plain(entry), 0),
                None => self.exact.remove(&key),
            }
        })?;
        held.prefixes
            .sync(&rules.prefixes, |(address, length), entry| {
                let bits = u32::BITS + u32::from(length);
                let key = Key::new(bits, Plain(PrefixKey { bank, address }));
                match entry {
                    Some(entry) => self.prefixes.insert(&key, Plain(entry), 0),
                    None => self.prefixes.remove(&key),
                }
            })?;
        held.ports
            .sync(&rules.ports, |(table, protocol, port), rule| {
                let protocol = u16::from(protocol);
                let key = Plain(PortKey {
                    bank,
                    table,
                    port,
                    protocol,
                });
                match rule {
                    Some(rule) => self.ports.insert(key, rule, 0),
                    None => self.ports.remove(&key),
                }
            })?;
        Ok(())
    }

    fn write_global(&mut self) -> Result<()> {
        self.global
            .set(0, PlainControl::of(&self.control), 0)
            .context("cannot write the programs' global data")
    }
}

impl<K, V> Default for Mirror<K, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Copy + Eq + Hash, V: Copy + PartialEq> Mirror<K, V> {
    /// Writes what `wanted` has and this has not, and removes what only this has.
    fn sync(
        &mut self,
        wanted: &HashMap<K, V>,
        mut write: impl FnMut(K, Option<V>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let Self(held) = self;
        let gone: Vec<K> = held
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            write(key, None)?;
            held.remove(&key);
        }
        for (&key, &value) in wanted {
            if held.get(&key) != Some(&value) {
                write(key, Some(value))?;
                held.insert(key, value);
            }
        }
        Ok(())
    }
}
