//! The kernel programs: maps, packet access, and what is done with a verdict. The verdicts are the library's.
//!
//! - `icept_egress_l3`, `icept_egress_l2`: TC egress of a tunnel; the one without, the other with an Ethernet header.
//! - `icept_return_l3`, `icept_return_l2`: TC ingress of the reader device, likewise; sends replies to the ingress of the
//!   tunnel they belong to.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("interceptor-bpf is a kernel program; `cargo xtask build-ebpf` builds it");
}

#[cfg(target_arch = "bpf")]
#[expect(
    unreachable_pub,
    reason = "the section that a program is in exports it"
)]
mod programs {
    use core::ptr;

    use aya_ebpf::bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC,
    };
    use aya_ebpf::helpers::generated::{
        bpf_check_mtu, bpf_redirect, bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_store_bytes,
    };
    use aya_ebpf::macros::{classifier, map};
    use aya_ebpf::maps::lpm_trie::Key;
    use aya_ebpf::maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray};
    use aya_ebpf::programs::TcContext;
    use interceptor_ebpf::classify::{Match, Rules, classify};
    use interceptor_ebpf::control::{ANY_PORTS, Control, REDIRECTED};
    use interceptor_ebpf::filter::Filter;
    use interceptor_ebpf::flow::{FlowKey, MAX_FLOWS, Path};
    use interceptor_ebpf::headers::{Address, Bytes, Headers};
    use interceptor_ebpf::reader;
    use interceptor_ebpf::reason::Reason;
    use interceptor_ebpf::rules::{
        Destination, ExactKey, MAX_DESTINATIONS, MAX_PORTS, MAX_RULES, PortKey, PrefixKey,
        RuleCounter,
    };
    use interceptor_ebpf::{ETHERNET_HEADER, protocol};

    /// Written by the daemon; read with volatile loads, because the compiler sees no other writer.
    #[unsafe(no_mangle)]
    static mut CONTROL: Control = Control::EMPTY;

    #[map]
    static EXACT: HashMap<ExactKey, Destination> =
        HashMap::with_max_entries(MAX_DESTINATIONS, BPF_F_NO_PREALLOC);
    #[map]
    static PREFIXES: LpmTrie<PrefixKey, Destination> =
        LpmTrie::with_max_entries(MAX_DESTINATIONS, BPF_F_NO_PREALLOC);
    #[map]
    static PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(MAX_PORTS, BPF_F_NO_PREALLOC);
    #[map]
    static FLOWS: LruHashMap<FlowKey, Path> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
    #[map]
    static RULES: PerCpuArray<RuleCounter> = PerCpuArray::with_max_entries(MAX_RULES, 0);
    #[map]
    static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

    /// Reads a field of [`CONTROL`].
    macro_rules! control {
        ($($field:tt)+) => {
            // SAFETY: the field is plain data inside a static; the daemon may write it at any time, in words that the
            // processor stores at once.
            unsafe { ptr::read_volatile(&raw const CONTROL.$($field)+) }
        };
    }

    #[classifier]
    pub fn icept_egress_l3(context: TcContext) -> i32 {
        egress::<0>(&context)
    }

    #[classifier]
    pub fn icept_egress_l2(context: TcContext) -> i32 {
        egress::<ETHERNET_HEADER>(&context)
    }

    #[classifier]
    pub fn icept_return_l3(context: TcContext) -> i32 {
        match give_back::<0>(&context) {
            Ok(verdict) => verdict,
            Err(reason) => conclude(&context, reason),
        }
    }

    #[classifier]
    pub fn icept_return_l2(context: TcContext) -> i32 {
        match give_back::<ETHERNET_HEADER>(&context) {
            Ok(verdict) => verdict,
            Err(reason) => conclude(&context, reason),
        }
    }

    /// Does nothing: the yardstick that the others are measured against.
    #[classifier]
    pub fn icept_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    #[inline(always)]
    fn egress<const LINK: usize>(context: &TcContext) -> i32 {
        let active = control!(active);
        if !admits::<LINK>(context, active) {
            return TC_ACT_UNSPEC;
        }
        judge::<LINK>(context.skb.skb, active & 1)
    }

    /// The prefilter: false when no rule can match. Reads the packet directly, at fixed offsets, in words: the kernel
    /// aligns the IP header to four bytes, and the verifier refuses what the processor could not load.
    #[inline(always)]
    fn admits<const LINK: usize>(context: &TcContext, active: u32) -> bool {
        let bank = (active & 1) as usize;
        let data = context.data();
        let end = context.data_end();
        let ip = data + LINK;
        if ip + 24 > end {
            return true;
        }
        let version = if LINK == 0 {
            // SAFETY: within the bounds checked above.
            (unsafe { *(data as *const u8) }) >> 4
        } else {
            // SAFETY: within the bounds checked above.
            match u16::from_be(unsafe { *((ip - 2) as *const u16) }) {
                protocol::ETHERTYPE_IPV4 => 4,
                protocol::ETHERTYPE_IPV6 => 6,
                _ => 0,
            }
        };
        let index = match version {
            4 => {
                // SAFETY: within the bounds checked above.
                let destination = unsafe { *((ip + 16) as *const u32) };
                Filter::v4_bit(control!(heads[bank].v4_mask), destination)
            }
            6 => {
                if ip + 44 > end {
                    return true;
                }
                // SAFETY: within the bounds checked above.
                let destination =
                    unsafe { [*((ip + 24) as *const u64), *((ip + 32) as *const u64)] };
                Filter::v6_bit(control!(heads[bank].v6_mask), destination)
            }
            _ => return LINK == 0,
        };
        if Filter::is_set(control!(bits[bank][index >> 6]), index) {
            return true;
        }
        if active & ANY_PORTS == 0 {
            return false;
        }
        let any_ports = control!(heads[bank].any_ports);
        // SAFETY: within the bounds checked above, for each version.
        let (plain, protocol, port) = unsafe {
            if version == 4 {
                let first = *(ip as *const u8);
                (
                    first == 0x45,
                    *((ip + 9) as *const u8),
                    *((ip + 22) as *const u16),
                )
            } else {
                (true, *((ip + 6) as *const u8), *((ip + 42) as *const u16))
            }
        };
        if !plain || protocol::is_extension_header(protocol) {
            return true;
        }
        Filter::has_ports(protocol) && Filter::port_is_set(any_ports, u16::from_be(port))
    }

    /// A function of its own in the kernel too, so that packets which do not get here pay nothing for its stack.
    #[inline(never)]
    fn judge<const LINK: usize>(skb: *mut __sk_buff, bank: u32) -> i32 {
        let context = TcContext::new(skb);
        match intercept::<LINK>(&context, bank) {
            Ok(verdict) => verdict,
            Err(reason) => conclude(&context, reason),
        }
    }

    /// Sends the packet to the reader device if a rule takes it.
    #[inline(always)]
    fn intercept<const LINK: usize>(context: &TcContext, bank: u32) -> Result<i32, Reason> {
        // SAFETY: the program's own context.
        let (mark, interface, length) = unsafe {
            let skb = context.skb.skb;
            ((*skb).mark, (*skb).ifindex, (*skb).len)
        };
        let reader = control!(reader);
        if interface == reader && mark == REDIRECTED {
            return Ok(TC_ACT_UNSPEC);
        }
        let exempt = control!(mark);
        if exempt != 0 && mark == exempt {
            return Err(Reason::Bypass);
        }
        let packet = Packet(context.skb.skb);
        let Match { rule, headers } = classify(&packet, LINK, &Maps { bank })?;
        if !exists(context, reader) {
            return Err(Reason::Unattended);
        }
        if let Some(counter) = RULES.get_ptr_mut(rule) {
            // SAFETY: this CPU's own copy, and the program is not preempted by itself.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += u64::from(length) - LINK as u64;
            }
        }
        if control!(remember) != 0 {
            let key = FlowKey::of_request(&packet, &headers);
            let path = path::<LINK>(&packet, if interface == reader { 0 } else { interface });
            // A full table forgets another flow; failing otherwise costs a reply, which the client asks for again.
            let _ = FLOWS.insert(key, path, 0);
        }
        if interface == reader {
            count(context, Reason::Intercepted);
            return Ok(TC_ACT_UNSPEC);
        }
        if LINK == 0 && control!(ethernet) != 0 {
            // SAFETY: the program's own context; the field is in network byte order.
            let ethertype = u16::from_be(unsafe { (*context.skb.skb).protocol } as u16);
            let header = reader::header(reader::FAR_MAC, reader::NEAR_MAC, ethertype);
            if !put_header::<0>(&packet, &header) {
                return Err(Reason::NoRoom);
            }
        }
        count(context, Reason::Intercepted);
        context.skb.set_mark(REDIRECTED);
        // SAFETY: a helper that takes numbers.
        Ok(unsafe { bpf_redirect(reader, 0) } as i32)
    }

    /// Whether there is an interface with that index. The reader device lives as long as the daemon; filters of clsact
    /// live longer, and must not send packets nowhere.
    #[inline(always)]
    fn exists(context: &TcContext, interface: u32) -> bool {
        let mut mtu = 0;
        // SAFETY: a helper on the program's own context. It fails with a negative number only where the interface is
        // missing (Linux 5.12, net/core/filter.c); packets beyond its MTU give a positive one.
        unsafe { bpf_check_mtu(context.skb.skb.cast(), interface, &raw mut mtu, 0, 0) >= 0 }
    }

    #[inline(always)]
    fn path<const LINK: usize>(packet: &Packet, interface: u32) -> Path {
        if LINK == 0 {
            return Path {
                interface,
                ..Path::default()
            };
        }
        match packet.load(0) {
            Some(header) => Path::ethernet(interface, header),
            None => Path::default(),
        }
    }

    /// Sends a reply from the reader device to the tunnel that its flow came from. Where that one has no Ethernet headers,
    /// the kernel takes the reader device's off.
    #[inline(always)]
    fn give_back<const LINK: usize>(context: &TcContext) -> Result<i32, Reason> {
        let packet = Packet(context.skb.skb);
        let path = match control!(remember) {
            0 => control!(path),
            _ => remembered::<LINK>(&packet)?,
        };
        if path.interface == 0 {
            return Err(Reason::ReturnedDirectly);
        }
        if path.ethernet != 0 && !put_header::<LINK>(&packet, &path.header) {
            return Err(Reason::ReturnNoRoom);
        }
        count(context, Reason::Returned);
        // SAFETY: a helper that takes numbers.
        Ok(unsafe { bpf_redirect(path.interface, u64::from(BPF_F_INGRESS)) } as i32)
    }

    /// Puts an Ethernet header before the packet, or in the place of the one it has.
    #[inline(always)]
    fn put_header<const LINK: usize>(packet: &Packet, header: &[u8; ETHERNET_HEADER]) -> bool {
        let Packet(skb) = *packet;
        let length = ETHERNET_HEADER as u32;
        // SAFETY: helpers on the program's own context; the buffer is as long as said.
        unsafe {
            (LINK != 0 || bpf_skb_change_head(skb, length, 0) == 0)
                && bpf_skb_store_bytes(skb.cast(), 0, header.as_ptr().cast(), length, 0) == 0
        }
    }

    /// The path that the flow of a reply came by.
    #[inline(always)]
    fn remembered<const LINK: usize>(packet: &Packet) -> Result<Path, Reason> {
        let Ok(headers) = Headers::parse(packet, LINK) else {
            return Err(Reason::ReturnMalformed);
        };
        let Ok(key) = FlowKey::of_reply(packet, &headers) else {
            return Err(Reason::ReturnMalformed);
        };
        // SAFETY: copied at once; an entry that is recycled meanwhile sends one reply the way of another flow, where
        // nobody waits for it.
        match unsafe { FLOWS.get(key) } {
            Some(path) => Ok(*path),
            None => Ok(control!(path)),
        }
    }

    /// Counts the reason and says what happens to the packet.
    #[inline(always)]
    fn conclude(context: &TcContext, reason: Reason) -> i32 {
        count(context, reason);
        match reason {
            Reason::Intercepted
            | Reason::NoRule
            | Reason::Bypass
            | Reason::Fragment
            | Reason::Extensions
            | Reason::Malformed
            | Reason::NotIp
            | Reason::Unattended
            | Reason::Returned
            | Reason::ReturnedDirectly => TC_ACT_UNSPEC,
            Reason::ReturnMalformed | Reason::ReturnNoRoom | Reason::NoRoom => TC_ACT_SHOT,
        }
    }

    #[inline(always)]
    fn count(context: &TcContext, reason: Reason) {
        log(context, reason);
        if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own copy.
            unsafe { *counter += 1 };
        }
    }

    #[cfg(feature = "log")]
    fn log(context: &TcContext, reason: Reason) {
        aya_log_ebpf::debug!(context, "{}: {} bytes", reason.name(), context.len());
    }

    #[cfg(not(feature = "log"))]
    fn log(_context: &TcContext, _reason: Reason) {}

    /// A packet as the kernel holds it, which need not be in one piece.
    struct Packet(*mut __sk_buff);

    impl Bytes for Packet {
        #[inline(always)]
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            let mut bytes = [0; N];
            // SAFETY: the helper writes at most N bytes, or fails.
            let status = unsafe {
                bpf_skb_load_bytes(
                    self.0.cast(),
                    offset as u32,
                    bytes.as_mut_ptr().cast(),
                    N as u32,
                )
            };
            (status == 0).then_some(bytes)
        }
    }

    /// The rules of one bank.
    struct Maps {
        bank: u32,
    }

    impl Rules for Maps {
        #[inline(always)]
        fn destination(&self, address: &Address) -> Destination {
            let Self { bank } = *self;
            let address = *address;
            // SAFETY: copied at once. Entries of the bank that counts are not written; the daemon waits for the
            // programs that still read the other one before it writes there.
            if let Some(destination) = unsafe { EXACT.get(ExactKey { address, bank }) } {
                return *destination;
            }
            let key = Key::new(u32::BITS + 128, PrefixKey { bank, address });
            match PREFIXES.get(key) {
                Some(destination) => *destination,
                None => Destination::UNCOVERED,
            }
        }

        #[inline(always)]
        fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
            let key = PortKey {
                bank: self.bank,
                table,
                port,
                protocol: u16::from(protocol),
            };
            // SAFETY: as above.
            unsafe { PORTS.get(key) }.copied()
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
