//! Switching off what a device would otherwise leave to its hardware, by ethtool's ioctl.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `ETHTOOL_STXCSUM` of linux/ethtool.h.
const SET_CHECKSUMS: u32 = 0x17;
/// `ETHTOOL_STSO`.
const SET_TCP_SEGMENTATION: u32 = 0x1f;
/// `ETHTOOL_SGSO`.
const SET_SEGMENTATION: u32 = 0x24;

/// Has the kernel segment packets and complete their checksums before they get to the device `name` of the calling
/// thread's network namespace: user space behind it has nobody to leave that to.
pub(super) fn switch_off(name: &str) -> io::Result<()> {
    for command in [SET_SEGMENTATION, SET_TCP_SEGMENTATION, SET_CHECKSUMS] {
        match set(name, command, 0) {
            // Kernels that know no such setting have nothing to switch off.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn set(name: &str, command: u32, data: u32) -> io::Result<()> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value { command, data };
    let mut interface = [0; libc::IFNAMSIZ];
    if name.len() >= interface.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (octet, letter) in interface.iter_mut().zip(name.bytes()) {
        *octet = letter.cast_signed();
    }
    let mut request = libc::ifreq {
        ifr_name: interface,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: the kernel reads the request and the value that it points to; both outlive the call.
    let status = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            libc::SIOCETHTOOL as _,
            &raw mut request,
        )
    };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
