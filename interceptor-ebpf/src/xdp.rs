//! The AF_XDP reader's kernel program: hands whatever arrives at the far end of the reader device to user space.
//!
//! An object of its own, because kernels built without AF_XDP refuse its map, and tapping does without it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("interceptor-xdp is a kernel program; `cargo xtask build-ebpf` builds it");
}

#[cfg(target_arch = "bpf")]
#[expect(
    unreachable_pub,
    reason = "the section that a program is in exports it"
)]
mod programs {
    use aya_ebpf::bindings::xdp_action::XDP_DROP;
    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::maps::XskMap;
    use aya_ebpf::programs::XdpContext;
    use interceptor_ebpf::reader::MAX_QUEUES;

    /// The sockets, by the queue that they are bound to.
    #[map]
    static SOCKETS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);

    /// Nobody else lives behind the reader device: what no socket takes is dropped.
    #[xdp]
    pub fn icept_reader(context: XdpContext) -> u32 {
        // SAFETY: the program's own context.
        let queue = unsafe { (*context.ctx).rx_queue_index };
        // A failed lookup gives the flags' value as the verdict (Linux 5.3).
        match SOCKETS.redirect(queue, u64::from(XDP_DROP)) {
            Ok(verdict) | Err(verdict) => verdict,
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}
