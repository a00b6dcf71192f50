//! A program that does nothing, where the daemon's would be: what the kernel takes for asking any.

use anyhow::{Context as _, Result};
use aya::programs::LinkOrder;
use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use lab::Namespace;

/// The object with the daemon's programs, of which one is empty.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../interceptor/bpf/interceptor.o"
));

/// Attaches it to what leaves by `interface`; it goes when dropped. Needs TCX, which Linux has since 6.6.
pub(super) fn attach(client: &Namespace, interface: &str) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .map_max_entries("ANSWERS", 1)
        .load(OBJECT)
        .context("cannot load the BPF object")?;
    let program = ebpf.program_mut("icept_empty");
    let program: &mut SchedClassifier = program.context("there is no empty program")?.try_into()?;
    program.load().context("cannot load the empty program")?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    client
        .enter(|| program.attach_with_options(interface, TcAttachType::Egress, options))?
        .context("cannot attach the empty program")?;
    Ok(ebpf)
}
