//! All that touches BPF: loading, attaching, rules and counters. The only user of aya.

pub mod answers;
mod capabilities;
mod clock;
mod clsact;
mod grace;
mod hooks;
mod load_error;
mod memory;
mod plain;
mod socket_program;
mod tables;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io, mem};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use interceptor_ebpf::Reason;
use interceptor_ebpf::flow::Path;
use interceptor_ebpf::rules::RuleCounter;
use nix::net::if_::if_nametoindex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use crate::config::AttachMode;
use crate::rules::{Compiled, RuleId};
use answers::Answers;
pub(crate) use capabilities::Capability;
pub(crate) use clock::is_clock_synchronised;
pub(crate) use hooks::{Hook, Hung, has_tcx, hung};
use load_error::LoadError;
pub(crate) use memory::release_unused;
use plain::Plain;
pub use socket_program::SocketProgram;
use tables::Tables;

/// The object that `cargo xtask build-ebpf` makes, without logging.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/interceptor.o"));

/// The loaded programs and their maps. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    tables: Tables,
    rules: PerCpuArray<MapData, Plain<RuleCounter>>,
    reasons: PerCpuArray<MapData, u64>,
    answers: Arc<Answers>,
    taps: HashMap<u32, Tap>,
    return_tap: Option<Tap>,
    /// The index of the interface that what rules take is sent to; 0 before it is known.
    reader: u32,
    /// The object's file; none for the embedded one.
    object: Option<path::PathBuf>,
}

/// How packets of an interface begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkLayer {
    /// With the IP header: TUN, WireGuard.
    Ip,
    /// With an Ethernet header: veth, bridge.
    Ethernet,
}

/// What holds a program on its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A TCX link (Linux 6.6), which vanishes with the daemon.
    Tcx,
    /// A filter of the clsact qdisc, which outlives a daemon that is killed.
    Clsact,
}

/// Where replies go from the reader device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnWay {
    /// Up the stack there and then: the virtual addresses are routed to the reader device.
    Direct,
    /// To the ingress of the only tunnel there is, an interface without Ethernet headers.
    Tunnel(u32),
    /// Each the way its flow came.
    Remembered {
        /// The tunnel for replies of flows that came before flows were remembered; 0 for none.
        otherwise: u32,
    },
}

/// What a run of a program on a packet of the caller's gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The verdict, a `TC_ACT_*` value.
    pub verdict: i32,
    /// Mean time of a run.
    pub duration: Duration,
    /// The packet as the last run left it.
    pub packet: Vec<u8>,
}

/// The programs in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The classifier.
    Egress(LinkLayer),
    /// The classifier without the kernel's answers.
    PlainEgress(LinkLayer),
    /// The way back of replies.
    Return(LinkLayer),
    /// Does nothing; what a run costs at least.
    Empty,
}

/// A program on an interface; dropping it takes it off.
struct Tap {
    interface: u32,
    attached: Attached,
    /// Whether the interface had no clsact qdisc before.
    added_clsact: bool,
    link: Option<SchedClassifierLink>,
}

impl Kernel {
    /// Loads the embedded object, or the one at `object`, with room for `answers` that the kernel gives by itself; with 0
    /// it gives none. Where the kernel refuses a map of that size, there is a warning and it gives none either.
    ///
    /// An object with logging needs a tokio runtime around the call. Fails where the kernel or the caller's privileges
    /// do not allow it, with what would help.
    pub fn load(object: Option<&path::Path>, answers: u32) -> Result<Self> {
        let bytes = match object {
            Some(path) => fs::read(path)
                .map(Cow::Owned)
                .with_context(|| format!("cannot read the BPF object {}", path.display()))?,
            None => Cow::Borrowed(OBJECT),
        };
        let load = |answers: u32| {
            EbpfLoader::new()
                // The kernel's own types, which the programs do not look at, take megabytes.
                .btf(None)
                .map_max_entries("ANSWERS", answers.max(1))
                .load(&bytes)
        };
        let mut capacity = answers;
        let mut ebpf = load(capacity)
            .or_else(|error| {
                let ebpf = load(0).map_err(|_| error)?;
                warn!(
                    entries = answers,
                    "the kernel cannot keep answers, so the daemon gives them all; a smaller --kernel-cache may fit"
                );
                capacity = 0;
                Ok(ebpf)
            })
            .map_err(|error| LoadError::object(object, &error))?;
        if ebpf.map("AYA_LOGS").is_some() {
            forward_logs(&mut ebpf)?;
        }
        Self::take(ebpf, object, capacity).with_context(|| match object {
            Some(path) => format!("{} is no BPF object of this version", path.display()),
            None => "cannot use the BPF programs".to_owned(),
        })
    }

    fn take(mut ebpf: Ebpf, object: Option<&path::Path>, answers: u32) -> Result<Self> {
        Ok(Self {
            answers: Arc::new(Answers::take(&mut ebpf, answers)?),
            tables: Tables::take(&mut ebpf)?,
            rules: PerCpuArray::try_from(take_map(&mut ebpf, "RULES")?)?,
            reasons: PerCpuArray::try_from(take_map(&mut ebpf, "REASONS")?)?,
            taps: HashMap::new(),
            return_tap: None,
            reader: 0,
            object: object.map(path::Path::to_owned),
            ebpf,
        })
    }

    /// Has the kernel verify what the daemon would attach, to interfaces of either layer. Gives the reason where it refuses
    /// no more than the programs that answer, so that the daemon would give all answers itself.
    pub(crate) fn verify(&mut self) -> Result<Option<Error>> {
        let object = self.object.as_deref();
        let mut refused = None;
        for layer in [LinkLayer::Ip, LinkLayer::Ethernet] {
            classifier(&mut self.ebpf, object, Program::Return(layer))?;
            let plain = classifier(&mut self.ebpf, object, Program::PlainEgress(layer)).map(|_| ());
            if self.answers.capacity() == 0 {
                plain?;
                continue;
            }
            let answering = classifier(&mut self.ebpf, object, Program::Egress(layer));
            if let Err(refusal) = answering.map(|_| ()) {
                if plain.is_err() {
                    return Err(refusal);
                }
                refused = Some(refusal);
            }
        }
        Ok(refused)
    }

    /// Whether the kernel compiles its programs, rather than interpreting them.
    pub(crate) fn is_compiled(&mut self) -> Result<bool> {
        let program = Program::Return(LinkLayer::Ip);
        let program = classifier(&mut self.ebpf, self.object.as_deref(), program)?;
        let info = program.info().context("cannot ask about a program")?;
        Ok(info.size_jitted() > 0)
    }

    /// Attaches the classifier to the loopback device of the caller's network namespace, and takes it off again.
    pub(crate) fn try_attaching(&mut self, mode: AttachMode) -> Result<Attached> {
        let name = "lo";
        let index = if_nametoindex(name).context("there is no loopback device")?;
        let attached = self.tap(name, index, LinkLayer::Ethernet, mode);
        self.untap(index);
        attached
    }

    /// The classifier for interfaces of this layer, loaded. Where the kernel refuses the one that answers, there is a
    /// warning, and none answers any more.
    fn egress(&mut self, layer: LinkLayer) -> Result<Program> {
        let (answering, plain) = (Program::Egress(layer), Program::PlainEgress(layer));
        let object = self.object.as_deref();
        if self.answers.capacity() == 0 {
            return Ok(plain);
        }
        let Err(refusal) = classifier(&mut self.ebpf, object, answering) else {
            return Ok(answering);
        };
        if classifier(&mut self.ebpf, object, plain).is_err() {
            return Err(refusal);
        }
        warn!("the kernel gives no answers by itself, so the daemon gives them all: {refusal:#}");
        self.answers.give_up()?;
        Ok(plain)
    }

    /// Taps the egress of an interface.
    ///
    /// Fails also when another interface has taken the name meanwhile.
    pub fn tap(
        &mut self,
        name: &str,
        index: u32,
        layer: LinkLayer,
        mode: AttachMode,
    ) -> Result<Attached> {
        let egress = self.egress(layer)?;
        let program = classifier(&mut self.ebpf, self.object.as_deref(), egress)?;
        let tap = Tap::attach(
            program,
            name,
            index,
            TcAttachType::Egress,
            mode,
            self.reader,
        )
        .with_context(|| format!("{name}: cannot attach the classifier"))?;
        if if_nametoindex(name) != Ok(index) {
            bail!("{name} was replaced by another interface of that name just now");
        }
        let attached = tap.attached;
        self.taps.insert(index, tap);
        Ok(attached)
    }

    /// Removes the clsact filters of daemons that were killed from the egress of an interface.
    ///
    /// A filter says which reader device it leads to, by the interface's index; `is_alive` tells whether a daemon holds
    /// that one.
    pub fn remove_leftovers(&mut self, name: &str, index: u32, is_alive: impl Fn(u32) -> bool) {
        if let Err(error) = remove_leftovers(name, index, is_alive) {
            warn!(
                interface = name,
                %error, "cannot look for classifiers of daemons that were killed"
            );
        }
    }

    /// Takes the program off an interface, which may be gone already.
    pub fn untap(&mut self, index: u32) {
        self.taps.remove(&index);
    }

    /// Takes note that an interface is gone and its program with it, so that there is nothing to ask the kernel for.
    pub fn forget(&mut self, index: u32) {
        if let Some(tap) = self.taps.remove(&index) {
            tap.forget();
        }
    }

    /// Whether the interface is tapped.
    pub fn is_tapped(&self, index: u32) -> bool {
        self.taps.contains_key(&index)
    }

    /// Attaches the way back of replies to the reader device, and sends there what rules take.
    pub fn attach_return(
        &mut self,
        name: &str,
        index: u32,
        layer: LinkLayer,
        mode: AttachMode,
    ) -> Result<()> {
        let program = classifier(
            &mut self.ebpf,
            self.object.as_deref(),
            Program::Return(layer),
        )?;
        let tap = Tap::attach(program, name, index, TcAttachType::Ingress, mode, index)
            .with_context(|| format!("{name}: cannot attach the way back of replies"))?;
        self.return_tap = Some(tap);
        self.set_reader(index, layer)
    }

    /// Sends what rules take to the interface with that index.
    pub fn set_reader(&mut self, index: u32, layer: LinkLayer) -> Result<()> {
        self.reader = index;
        self.tables.configure(|control| {
            control.reader = index;
            control.ethernet = u32::from(layer == LinkLayer::Ethernet);
        })
    }

    /// Makes `rules` the ones that count, in one step, and the answers given under the old ones unusable.
    pub fn apply(&mut self, rules: &Compiled) -> Result<()> {
        self.stage(rules)?;
        self.switch(rules)
    }

    /// Writes `rules` beside those that count, so that [`Kernel::switch`] can make them count; until then nothing changes.
    pub fn stage(&mut self, rules: &Compiled) -> Result<()> {
        self.tables.stage(rules)
    }

    /// Makes `rules`, which were staged last, the ones that count, as [`Kernel::apply`] does.
    pub fn switch(&mut self, rules: &Compiled) -> Result<()> {
        self.tables.switch(rules)?;
        self.answers.forget_all()
    }

    /// The answers that the kernel gives by itself.
    pub fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// Lets packets with one of `marks` pass before any rule; 0 for none.
    pub fn exempt(&mut self, marks: [u32; 2]) -> Result<()> {
        self.tables.configure(|control| control.exempt = marks)
    }

    /// Says where replies go.
    pub fn return_by(&mut self, way: ReturnWay) -> Result<()> {
        let (remember, interface) = match way {
            ReturnWay::Direct => (false, 0),
            ReturnWay::Tunnel(interface) => (false, interface),
            ReturnWay::Remembered { otherwise } => (true, otherwise),
        };
        self.tables.configure(|control| {
            control.remember = u32::from(remember);
            control.path = Path {
                interface,
                ..Path::default()
            };
        })
    }

    /// Forgets what a rule's number has counted.
    pub fn reset_counter(&mut self, RuleId(slot): RuleId) -> Result<()> {
        let zeroes = vec![Plain(RuleCounter::default()); cpus()?];
        self.rules
            .set(slot, PerCpuValues::try_from(zeroes)?, 0)
            .context("cannot reset a rule's counter")
    }

    /// Packets and bytes that a rule has taken.
    pub fn counter(&self, RuleId(slot): RuleId) -> Result<RuleCounter> {
        let values = self
            .rules
            .get(&slot, 0)
            .context("cannot read a rule's counter")?;
        let mut sum = RuleCounter::default();
        for Plain(RuleCounter { packets, bytes }) in values.iter() {
            sum.packets += packets;
            sum.bytes += bytes;
        }
        Ok(sum)
    }

    /// Packets by what became of them.
    pub fn reasons(&self) -> Result<BTreeMap<&'static str, u64>> {
        Reason::ALL
            .into_iter()
            .map(|reason| {
                let values = self.reasons.get(&(reason as u32), 0)?;
                Ok((reason.name(), values.iter().sum()))
            })
            .collect()
    }

    /// Runs a program `repeat` times on a packet that begins with the link-layer header, if the program expects one.
    ///
    /// Redirects are reported, not executed.
    pub fn test_run(
        &mut self,
        program: Program,
        packet: &[u8],
        mark: u32,
        repeat: u32,
    ) -> Result<TestRun> {
        // `mark` is the third word of `struct __sk_buff`.
        let mut context = [0; 12];
        context[8..].copy_from_slice(&mark.to_ne_bytes());
        let mut left = vec![0; 2048.max(packet.len())];
        let result = classifier(&mut self.ebpf, self.object.as_deref(), program)?
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut left),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::new()
            })
            .context("BPF_PROG_TEST_RUN failed")?;
        left.truncate(result.data_size_out as usize);
        Ok(TestRun {
            packet: left,
            verdict: result.return_value.cast_signed(),
            duration: result.duration,
        })
    }
}

impl Tap {
    /// `reader` is the device that the program leads to, 0 for none yet; a filter carries it as its handle.
    fn attach(
        program: &mut SchedClassifier,
        name: &str,
        interface: u32,
        kind: TcAttachType,
        mode: AttachMode,
        reader: u32,
    ) -> Result<Self> {
        let mut tap = Self {
            interface,
            attached: Attached::Tcx,
            added_clsact: false,
            link: None,
        };
        if mode != AttachMode::Clsact {
            // First, so that what follows sees of matched packets what the tunnel sees of them: nothing.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(name, kind, options) {
                Ok(id) => {
                    tap.link = Some(program.take_link(id)?);
                    return Ok(tap);
                }
                Err(error) if mode == AttachMode::Auto => {
                    debug!(interface = name, %error, "no TCX here (Linux 6.6), taking clsact");
                }
                Err(error) => {
                    return Err(error).context("no TCX here (Linux 6.6); try `--attach clsact`");
                }
            }
        }
        tap.attached = Attached::Clsact;
        tap.added_clsact = clsact::add(name)?;
        let options = TcAttachOptions::Netlink(NlOptions {
            handle: reader.into(),
            ..NlOptions::default()
        });
        let id = program.attach_with_options(name, kind, options)?;
        tap.link = Some(program.take_link(id)?);
        Ok(tap)
    }

    /// Lets go of it without asking the kernel for anything.
    fn forget(mut self) {
        self.added_clsact = false;
        if self.attached == Attached::Clsact {
            // A filter's link holds numbers and nothing else; dropping it would ask for the filter's removal.
            mem::forget(self.link.take());
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.link = None;
        if self.added_clsact {
            clsact::tidy(self.interface);
        }
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Egress(LinkLayer::Ip) => "icept_egress_l3",
            Self::Egress(LinkLayer::Ethernet) => "icept_egress_l2",
            Self::PlainEgress(LinkLayer::Ip) => "icept_plain_l3",
            Self::PlainEgress(LinkLayer::Ethernet) => "icept_plain_l2",
            Self::Return(LinkLayer::Ip) => "icept_return_l3",
            Self::Return(LinkLayer::Ethernet) => "icept_return_l2",
            Self::Empty => "icept_empty",
        }
    }
}

fn remove_leftovers(name: &str, index: u32, is_alive: impl Fn(u32) -> bool) -> io::Result<()> {
    let filters = clsact::egress_programs(index)?;
    let dead = filters
        .iter()
        .filter(|filter| is_classifier(&filter.name) && !is_alive(filter.handle));
    let mut removed = false;
    for filter in dead {
        clsact::remove_egress(index, filter)?;
        removed = true;
        warn!(
            interface = name,
            "removed the classifier of a daemon that was killed"
        );
    }
    if removed {
        clsact::tidy(index);
    }
    Ok(())
}

/// Whether a program of this name is a classifier of ours.
fn is_classifier(name: &str) -> bool {
    [Program::Egress, Program::PlainEgress]
        .into_iter()
        .flat_map(|program| [LinkLayer::Ip, LinkLayer::Ethernet].map(program))
        .any(|program| program.name() == name)
}

/// The program, loaded at its first use.
fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    object: Option<&path::Path>,
    program: Program,
) -> Result<&'a mut SchedClassifier> {
    let name = program.name();
    let classifier: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| match object {
            Some(path) => format!("the BPF object {} has no program {name}", path.display()),
            None => format!("the BPF object has no program {name}"),
        })?
        .try_into()?;
    if classifier.fd().is_err() {
        classifier
            .load()
            .map_err(|error| LoadError::program(name, object, &error))?;
    }
    Ok(classifier)
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("it has no map {name}"))
}

fn cpus() -> Result<usize> {
    aya::util::nr_cpus()
        .map_err(|(path, error)| anyhow!(error).context(format!("cannot read {path}")))
}

/// Hands what the programs log to tracing; only objects built with `--log` have anything to say.
fn forward_logs(ebpf: &mut Ebpf) -> Result<()> {
    let logger = aya_log::EbpfLogger::init(ebpf).context("cannot read the programs' log")?;
    // SAFETY: the logger owns its ring buffer's descriptor until it is dropped, and returns the same one each time.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}
