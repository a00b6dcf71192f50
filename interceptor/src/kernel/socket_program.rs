//! The AF_XDP reader's program: on the far end of the reader device, handing packets to sockets.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use aya::maps::XskMap;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use super::load_error::LoadError;

/// The object that `cargo xtask build-ebpf` makes beside the classifier's.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/xdp.o"));

const PROGRAM: &str = "icept_reader";

/// The program and its map of sockets. Dropping it takes the program off its interface.
pub struct SocketProgram(Ebpf);

impl SocketProgram {
    /// Loads the program.
    ///
    /// Fails where the kernel (built without AF_XDP) or the caller's privileges do not allow it.
    pub fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            // The kernel's own types, which the program does not look at, take megabytes.
            .btf(None)
            .load(OBJECT)
            .map_err(|error| LoadError::object(None, &error))?;
        xdp(&mut ebpf)?
            .load()
            .map_err(|error| LoadError::program(PROGRAM, None, &error))?;
        Ok(Self(ebpf))
    }

    /// Attaches it to the interface with that index in the calling thread's network namespace, in the driver: where the
    /// kernel attaches XDP to a veth otherwise, sockets receive nothing.
    pub fn attach(&mut self, interface: u32) -> Result<()> {
        let Self(ebpf) = self;
        xdp(ebpf)?
            .attach_to_if_index(interface, XdpMode::Driver)
            .context("the driver does not take the XDP program")?;
        Ok(())
    }

    /// Gives what arrives at a receive queue to the socket that is bound to it.
    pub fn serve(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<()> {
        let Self(ebpf) = self;
        let map = ebpf
            .map_mut("SOCKETS")
            .context("the object has no map SOCKETS")?;
        XskMap::try_from(map)?
            .set(queue, socket.as_raw_fd(), 0)
            .context("the XDP program's map does not take the socket")
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf
        .program_mut(PROGRAM)
        .with_context(|| format!("the object has no program {PROGRAM}"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| error.into())
}
