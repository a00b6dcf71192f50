//! The kernel programs: maps, packet access, and what is done with a verdict. The verdicts are the library's.
//!
//! - `icept_egress_l3`, `icept_egress_l2`: TC egress of a tunnel; the one without, the other with an Ethernet header.
//!   They answer queries that the daemon has answered before, and send the rest of what rules take to the reader device.
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
    use core::hint::black_box;
    use core::mem::offset_of;
    use core::ptr;

    use aya_ebpf::bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC,
    };
    use aya_ebpf::helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_ktime_get_boot_ns, bpf_redirect, bpf_skb_change_head,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    };
    use aya_ebpf::macros::{classifier, map};
    use aya_ebpf::maps::lpm_trie::Key;
    use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
    use aya_ebpf::programs::TcContext;
    use interceptor_ebpf::answer::{BODY_ROOM, Entry, MAX_ENTRIES, Permit};
    use interceptor_ebpf::classify::{Match, Rules, classify, find};
    use interceptor_ebpf::control::{ANY_PORTS, Control, REDIRECTED};
    use interceptor_ebpf::envelope::{self, Envelope, HEAD_WORDS, IPV4_HEADER, UDP_HEADER};
    use interceptor_ebpf::filter::Filter;
    use interceptor_ebpf::flow::{FlowKey, MAX_FLOWS, Path};
    use interceptor_ebpf::headers::{Address, Bytes, Headers};
    use interceptor_ebpf::pass::Pass;
    use interceptor_ebpf::question::{
        self, NAME_WORDS, QUERY_AT, QUERY_ROOM, QUERY_WORDS, Question,
    };
    use interceptor_ebpf::reader;
    use interceptor_ebpf::reason::Reason;
    use interceptor_ebpf::rules::{
        self, Destination, ExactKey, MAX_DESTINATIONS, MAX_PORTS, MAX_RULES, PortKey, PrefixKey,
        RuleCounter,
    };
    use interceptor_ebpf::words::Words;
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

    #[map]
    static ANSWERS: LruHashMap<u64, Entry> = LruHashMap::with_max_entries(MAX_ENTRIES, 0);
    #[map]
    static PERMIT: Array<Permit> = Array::with_max_entries(1, 0);
    #[map]
    static PASSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Pass::ALL.len() as u32, 0);
    #[map]
    static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

    /// What answering needs and the stack has no room for.
    #[repr(C)]
    struct Scratch {
        key: question::Key,
        envelope: Envelope,
        query: Words<QUERY_WORDS>,
        question: Question,
        entry: Entry,
        /// For the verifier, which knows of lengths only how many bits they have.
        spare: [u64; 64],
    }

    /// The least verdict of [`answer`] that is none: it leaves the packet to [`judge`]. What is added is the number of the
    /// reason, where that is to be counted if a rule takes the packet by which the kernel may answer.
    const NOT_ANSWERED: i32 = 0x100;

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
        egress::<0, true>(&context)
    }

    #[classifier]
    pub fn icept_egress_l2(context: TcContext) -> i32 {
        egress::<ETHERNET_HEADER, true>(&context)
    }

    /// As `icept_egress_l3` for kernels that are to give no answers, or whose verifier refuses what gives them.
    #[classifier]
    pub fn icept_plain_l3(context: TcContext) -> i32 {
        egress::<0, false>(&context)
    }

    #[classifier]
    pub fn icept_plain_l2(context: TcContext) -> i32 {
        egress::<ETHERNET_HEADER, false>(&context)
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

    /// The way of almost every packet, and so without any call after which it would need its registers again: those which
    /// calls preserve have to be saved at the beginning.
    #[inline(always)]
    fn egress<const LINK: usize, const ANSWERS: bool>(context: &TcContext) -> i32 {
        let active = control!(active);
        if admits::<LINK>(context, active) {
            inspect::<LINK, ANSWERS>(context.skb.skb)
        } else {
            TC_ACT_UNSPEC
        }
    }

    /// The prefilter: false when no rule can match. Reads the packet directly, at fixed offsets, in words: the kernel
    /// aligns the IP header to four bytes, and the verifier refuses what the processor could not load.
    #[inline(always)]
    fn admits<const LINK: usize>(context: &TcContext, active: u32) -> bool {
        let skb = context.skb.skb;
        // SAFETY: a place inside a static; nothing is read yet.
        let filter = unsafe { &raw const CONTROL.filters[(active & 1) as usize] };
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
        // SAFETY: within the bounds checked above, and as in `control`.
        unsafe {
            match version {
                4 => {
                    let mask = ptr::read_volatile(&raw const (*filter).head.v4_mask);
                    let destination = *((ip + 16) as *const u32);
                    if is_set(filter, Filter::v4_bit(destination & mask)) {
                        return true;
                    }
                    active & ANY_PORTS != 0 && admits_port::<LINK, true>(skb, filter)
                }
                6 => {
                    if ip + 44 > end {
                        return true;
                    }
                    let mask = &raw const (*filter).head.v6_mask;
                    let mask = |word: usize| ptr::read_volatile(&raw const (*mask)[word]);
                    let first = *((ip + 24) as *const u64) & mask(0);
                    let second = *((ip + 32) as *const u64) & mask(1);
                    if is_set(filter, Filter::v6_bit([first, second])) {
                        return true;
                    }
                    active & ANY_PORTS != 0 && admits_port::<LINK, false>(skb, filter)
                }
                _ => LINK == 0,
            }
        }
    }

    /// Whether that bit of the prefilter is set.
    #[inline(always)]
    unsafe fn is_set(filter: *const Filter, index: usize) -> bool {
        // SAFETY: inside the bitmap, whatever the index, and as in `control`.
        let word = unsafe { ptr::read_volatile(&raw const (*filter).bits[index >> 6]) };
        Filter::is_set(word, index)
    }

    /// Whether a rule for any destination may take the packet, by its port. Looks for the packet afresh: where it is would
    /// have to be kept in a register that every other packet's way had to save.
    #[inline(always)]
    unsafe fn admits_port<const LINK: usize, const V4: bool>(
        skb: *mut __sk_buff,
        filter: *const Filter,
    ) -> bool {
        // SAFETY: the program's own context; the packet is read within its bounds; and as in `control`.
        unsafe {
            let ip = ptr::read_volatile(&raw const (*skb).data) as usize + LINK;
            let end = ptr::read_volatile(&raw const (*skb).data_end) as usize;
            let (protocol, port) = if V4 { (9, 22) } else { (6, 42) };
            if ip + port + 2 > end || V4 && *(ip as *const u8) != 0x45 {
                return true;
            }
            let protocol = *((ip + protocol) as *const u8);
            if !Filter::has_ports(protocol) {
                return protocol::is_extension_header(protocol);
            }
            let any_ports = ptr::read_volatile(&raw const (*filter).head.any_ports);
            Filter::port_is_set(any_ports, u16::from_be(*((ip + port) as *const u16)))
        }
    }

    /// A function of its own in the kernel too, as [`judge`]. Which ruleset counts is read once more: what another one's
    /// prefilter admitted is judged by this one alone, and a register is saved.
    #[inline(never)]
    fn inspect<const LINK: usize, const ANSWERS: bool>(skb: *mut __sk_buff) -> i32 {
        let bank = control!(active) & 1;
        if !ANSWERS {
            return judge::<LINK>(skb, bank, 0);
        }
        let verdict = answer::<LINK>(skb, bank);
        if verdict < NOT_ANSWERED {
            return verdict;
        }
        judge::<LINK>(skb, bank, (verdict - NOT_ANSWERED) as u32)
    }

    /// A function of its own in the kernel too, so that packets which do not get here pay nothing for its stack.
    #[inline(never)]
    fn judge<const LINK: usize>(skb: *mut __sk_buff, bank: u32, unread: u32) -> i32 {
        let context = TcContext::new(skb);
        match intercept::<LINK>(&context, bank, unread) {
            Ok(verdict) => verdict,
            Err(reason) => conclude(&context, reason),
        }
    }

    /// Sends the packet to the reader device if a rule takes it. Where the rule would have let the kernel answer what it
    /// has not read, the reason of that number is counted; 0 is none.
    #[inline(always)]
    fn intercept<const LINK: usize>(
        context: &TcContext,
        bank: u32,
        unread: u32,
    ) -> Result<i32, Reason> {
        // SAFETY: the program's own context.
        let (mark, interface, length) = unsafe {
            let skb = context.skb.skb;
            ((*skb).mark, (*skb).ifindex, (*skb).len)
        };
        let reader = control!(reader);
        if interface == reader && mark == REDIRECTED {
            return Ok(TC_ACT_UNSPEC);
        }
        if is_exempt(mark) {
            return Err(Reason::Bypass);
        }
        let packet = Packet(context.skb.skb);
        let Match {
            rule,
            policy,
            headers,
        } = classify(&packet, LINK, &Maps { bank })?;
        if !exists(context.skb.skb, reader) {
            return Err(Reason::Unattended);
        }
        if policy != 0 && unread != 0 {
            count_pass(unread);
        }
        count_rule(rule, u64::from(length) - LINK as u64);
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

    /// Answers the query where the answer is known; the verdict is [`NOT_ANSWERED`] or above elsewhere.
    ///
    /// A function of its own, and before [`judge`]: what takes most packets has no need of its way through all headers.
    #[inline(never)]
    fn answer<const LINK: usize>(skb: *mut __sk_buff, bank: u32) -> i32 {
        let permit = permit();
        if permit.generation == 0 {
            return NOT_ANSWERED;
        }
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
            return NOT_ANSWERED;
        };
        // SAFETY: this CPU's own copy, and the program is not preempted by itself.
        let scratch = unsafe { &mut *scratch };
        // SAFETY: the program's own context.
        let length = unsafe { (*skb).len };
        match read_envelope::<LINK>(skb, length) {
            Ok(envelope) => scratch.envelope = envelope,
            Err(pass) => return NOT_ANSWERED + pass as i32,
        }
        let scratch = afresh(scratch);
        let rule = asked(skb, bank, &scratch.envelope);
        if rule == 0 {
            return NOT_ANSWERED;
        }
        let policy = black_box(rules::policy(rule));
        let (outcome, verdict) = match try_answer::<LINK>(skb, scratch, length, policy, permit) {
            Ok(verdict) => {
                count_rule(rules::number(rule), u64::from(length) - LINK as u64);
                (Pass::Answered, verdict)
            }
            Err(pass) => (pass, NOT_ANSWERED),
        };
        count_pass(outcome as u32);
        verdict
    }

    /// The rule that takes the datagram, with its policy; 0 where none does by which the kernel may answer.
    ///
    /// A function of its own, so that the verifier need not look at what follows once for every way through the rules.
    #[inline(never)]
    fn asked(skb: *mut __sk_buff, bank: u32, envelope: &Envelope) -> u32 {
        // SAFETY: the program's own context.
        let (mark, interface) = unsafe { ((*skb).mark, (*skb).ifindex) };
        let reader = control!(reader);
        if interface == reader && mark == REDIRECTED || is_exempt(mark) {
            return 0;
        }
        let Some(receiver) = envelope.receiver() else {
            return 0;
        };
        let port = envelope.destination_port.swap_bytes();
        match find(&receiver, protocol::UDP, port, &Maps { bank }) {
            Some(rule) if rules::policy(rule) != 0 && exists(skb, reader) => rule,
            _ => 0,
        }
    }

    /// Whether packets with that mark are never intercepted.
    #[inline(always)]
    fn is_exempt(mark: u32) -> bool {
        mark != 0 && (mark == control!(exempt[0]) || mark == control!(exempt[1]))
    }

    #[inline(always)]
    fn try_answer<const LINK: usize>(
        skb: *mut __sk_buff,
        scratch: &mut Scratch,
        length: u32,
        policy: u32,
        permit: Permit,
    ) -> Result<i32, Pass> {
        let envelope = scratch.envelope;
        let head = black_box(LINK + envelope.ip_header() + UDP_HEADER);
        read_question(skb, scratch, head, &envelope, policy)?;
        let scratch = afresh(scratch);
        look_up(scratch, permit)?;

        let scratch = afresh(scratch);
        let question = scratch.question;
        let tail = scratch.entry.finish(&question);
        let message = question.end + tail;
        if message > question.limit {
            return Err(Pass::TooLarge);
        }
        let udp = (UDP_HEADER + message) as u32;
        let reply = (head + message) as u32;
        let mut mtu = 0;
        // SAFETY: a helper on the program's own context; 0 is the context's interface.
        if unsafe { bpf_check_mtu(skb.cast(), 0, &raw mut mtu, reply as i32 - length as i32, 0) }
            != 0
        {
            return Err(Pass::TooLarge);
        }
        let header = scratch.entry.reply_header(&question);
        let checksum = checksum(scratch, &envelope, &question, header, tail)?;
        // SAFETY: a helper on the program's own context. It leaves the packet as it was where it fails.
        if unsafe { bpf_skb_change_tail(skb, reply, 0) } != 0 {
            return Err(Pass::NoRoom);
        }
        let at = (head + question.end) as u32;
        let body = scratch.entry.body.0.as_ptr().cast();
        let mut written = tail == 0 || {
            let tail = bounded::<0x3ff>(tail - 1) + 1;
            store(skb, at, body, tail as u32)
        };
        if envelope.is_v6 == 0 {
            let head = envelope.reply_v4(udp, checksum, question.id, header);
            written &= store(
                skb,
                LINK as u32,
                head.as_ptr().cast(),
                size_of_val(&head) as u32,
            );
        } else {
            let head = envelope.reply_v6(udp, checksum, question.id, header);
            written &= store(
                skb,
                LINK as u32,
                head.as_ptr().cast(),
                size_of_val(&head) as u32,
            );
        }
        if LINK != 0 {
            written &= swap_ethernet(skb);
        }
        if !written {
            return Ok(TC_ACT_SHOT);
        }
        let context = TcContext::new(skb);
        // SAFETY: the program's own context.
        let interface = unsafe { (*skb).ifindex };
        // The client's mark would lead the reply elsewhere; ours tells `icept_return` that it has nowhere to go.
        context.skb.set_mark(if interface == control!(reader) {
            REDIRECTED
        } else {
            0
        });
        // SAFETY: a helper that takes numbers.
        Ok(unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) } as i32)
    }

    /// Reads the headers where the packet has them in one piece, in words, as [`admits`] does.
    #[inline(always)]
    fn read_envelope<const LINK: usize>(
        skb: *mut __sk_buff,
        length: u32,
    ) -> Result<Envelope, Pass> {
        const FIRST: usize = (IPV4_HEADER + UDP_HEADER) / 4;
        let context = TcContext::new(skb);
        let ip = context.data() + LINK;
        let end = context.data_end();
        // SAFETY: the program's own context.
        if ip + 4 * FIRST > end || unsafe { (*skb).gso_size } != 0 {
            return Err(Pass::Headers);
        }
        // SAFETY: within the bounds checked, here and below.
        let word = |index: usize| unsafe { *((ip + 4 * index) as *const u32) };
        let mut head = [0; HEAD_WORDS];
        for index in 0..FIRST {
            head[index] = word(index);
        }
        if head[0] as u8 >> 4 == 6 {
            if ip + 4 * HEAD_WORDS > end {
                return Err(Pass::Headers);
            }
            for index in FIRST..HEAD_WORDS {
                head[index] = word(index);
            }
        }
        Envelope::parse(&head, length as usize - LINK)
    }

    #[inline(always)]
    fn read_question(
        skb: *mut __sk_buff,
        scratch: &mut Scratch,
        at: usize,
        envelope: &Envelope,
        policy: u32,
    ) -> Result<(), Pass> {
        if envelope.payload() > QUERY_ROOM {
            return Err(Pass::LongQuery);
        }
        if envelope.payload() == 0 {
            return Err(Pass::Malformed);
        }
        // At least one in its form as well: before Linux 6.8 the verifier forgets a comparison of what was spilled.
        let length = bounded::<0xff>(envelope.payload() - 1) + 1;
        // SAFETY: within the words.
        let query = unsafe { scratch.query.0.as_mut_ptr().cast::<u8>().add(QUERY_AT) };
        if !load(skb, at as u32, query.cast(), length as u32) {
            return Err(Pass::Headers);
        }
        scratch.query.set_eight(QUERY_AT + length, 0);
        let question = Question::parse(&scratch.query, length, policy as u16, &mut scratch.key)?;
        scratch.question = question;
        Ok(())
    }

    /// Copies the answer into the scratch, with its TTLs counted down.
    #[inline(always)]
    fn look_up(scratch: &mut Scratch, permit: Permit) -> Result<(), Pass> {
        let name = scratch.question.name;
        let digest = scratch.key.digest(name, permit.secret);
        let Some(found) = ANSWERS.get_ptr_mut(&digest.sum) else {
            return Err(Pass::Unknown);
        };
        let from = found.cast::<u64>();
        let to = (&raw mut scratch.entry).cast::<u64>();
        // SAFETY: within the entry, as those who call it see to. Another CPU may write there meanwhile, in words; the
        // seal tells.
        let word = |index: usize| unsafe { ptr::read_volatile(from.add(index)) };
        // SAFETY: likewise.
        let copy = |index: usize| unsafe { *to.add(index) = word(index) };
        const SEALED: usize = offset_of!(Entry, seal) / 8;
        const KIND: usize = offset_of!(Entry, kind) / 8;
        const NAME: usize = offset_of!(Entry, name) / 8;
        const BODY: usize = offset_of!(Entry, body) / 8;
        for index in SEALED..NAME {
            copy(index);
        }
        if scratch.entry.generation != permit.generation {
            return Err(Pass::Outdated);
        }
        // What has another name or kind is the answer to a question with the same digest.
        if word(KIND) != scratch.key.kind() {
            return Err(Pass::Unknown);
        }
        let name = afresh(scratch).question.name;
        for index in 0..NAME_WORDS {
            if index * 8 >= name {
                break;
            }
            if word(NAME + index) != scratch.key.name[index] {
                return Err(Pass::Unknown);
            }
        }
        let length = afresh(scratch).entry.length as usize;
        if length > BODY_ROOM {
            return Err(Pass::Torn);
        }
        for index in 0..BODY_ROOM / 8 {
            if index * 8 >= length {
                break;
            }
            copy(BODY + index);
        }
        let entry = &afresh(scratch).entry;
        if entry.computed_seal(digest) != entry.seal {
            return Err(Pass::Torn);
        }
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        if now >= entry.expires {
            return Err(Pass::Expired);
        }
        // SAFETY: the counters of the entry, or of one that has taken its place. What two processors count at once may
        // count as one.
        unsafe {
            let (hits, asked) = (&raw mut (*found).hits, &raw mut (*found).asked);
            if now >= entry.renewal && ptr::read_volatile(asked) == 0 {
                ptr::write_volatile(asked, 1);
                return Err(Pass::Renewal);
            }
            ptr::write_volatile(hits, ptr::read_volatile(hits) + 1);
        }
        afresh(scratch).entry.count_down(now);
        Ok(())
    }

    /// The scratch, of whose contents the compiler forgets what it knows, and the verifier with it: a value that it has
    /// seen in loops and branches would have it look at what follows once for each of their outcomes.
    #[inline(always)]
    fn afresh(scratch: &mut Scratch) -> &mut Scratch {
        black_box(scratch)
    }

    /// The checksum of the reply, which has this DNS header and `tail` octets behind the question.
    #[inline(always)]
    fn checksum(
        scratch: &Scratch,
        envelope: &Envelope,
        question: &Question,
        header: [u16; 5],
        tail: usize,
    ) -> Result<u16, Pass> {
        let message = envelope.payload();
        let query = scratch.query.0.as_ptr().cast::<u8>();
        let kind = envelope.checksum_kind(|| {
            // SAFETY: within the words, for as long as the sum goes.
            sum::<0xfc>(unsafe { query.add(QUERY_AT) }, message)
        })?;
        let length = (UDP_HEADER + question.end + tail) as u32;
        if kind != envelope::Checksum::Whole {
            return Ok(envelope.reply_checksum(kind, length, 0, 0));
        }
        let end = question.end;
        // SAFETY: within the words: the question was read from there.
        let old = sum::<0xfc>(
            unsafe { query.add(QUERY_AT + bounded::<0xff>(end)) },
            message - end,
        );
        let new = sum::<0x3fc>(scratch.entry.body.0.as_ptr().cast(), tail);
        let removed = envelope::header_sum(question.header()) + envelope::placed(old, end);
        let added = envelope::header_sum(header) + envelope::placed(new, end);
        Ok(envelope.reply_checksum(kind, length, removed, added))
    }

    /// The sum over octets that zeroes follow, up to a multiple of four that is within `MASK`.
    #[inline(always)]
    fn sum<const MASK: usize>(from: *const u8, length: usize) -> u64 {
        let length = bounded::<MASK>(length + 3);
        // SAFETY: a helper that reads as much as the verifier has seen to be there.
        let sum =
            unsafe { bpf_csum_diff(ptr::null_mut(), 0, from.cast_mut().cast(), length as u32, 0) };
        sum as u32 as u64
    }

    /// `value`, which is within `MASK`, in a form that the verifier sees to be.
    #[inline(always)]
    fn bounded<const MASK: usize>(value: usize) -> usize {
        black_box(value) & MASK
    }

    #[inline(always)]
    fn swap_ethernet(skb: *mut __sk_buff) -> bool {
        let Some(addresses) = Packet(skb).load::<12>(0) else {
            return false;
        };
        let word = |at: usize| {
            u32::from_le_bytes([
                addresses[at],
                addresses[at + 1],
                addresses[at + 2],
                addresses[at + 3],
            ])
        };
        let (first, second, third) = (word(0), word(4), word(8));
        let swapped = [
            second >> 16 | third << 16,
            third >> 16 | first << 16,
            first >> 16 | second << 16,
        ];
        store(skb, 0, swapped.as_ptr().cast(), 12)
    }

    #[inline(always)]
    fn permit() -> Permit {
        match PERMIT.get(0) {
            // SAFETY: a word that the daemon may write at any time.
            Some(permit) => unsafe { ptr::read_volatile(permit) },
            None => Permit::default(),
        }
    }

    #[inline(always)]
    fn count_pass(number: u32) {
        if let Some(counter) = PASSES.get_ptr_mut(number) {
            // SAFETY: this CPU's own copy.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_rule(rule: u32, bytes: u64) {
        if let Some(counter) = RULES.get_ptr_mut(rule) {
            // SAFETY: this CPU's own copy, and the program is not preempted by itself.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += bytes;
            }
        }
    }

    #[inline(always)]
    fn load(skb: *mut __sk_buff, at: u32, to: *mut u8, length: u32) -> bool {
        // SAFETY: a helper that writes as much as the verifier has seen to have room.
        unsafe { bpf_skb_load_bytes(skb.cast(), at, to.cast(), length) == 0 }
    }

    #[inline(always)]
    fn store(skb: *mut __sk_buff, at: u32, from: *const u8, length: u32) -> bool {
        // SAFETY: a helper that reads as much as the verifier has seen to be there.
        unsafe { bpf_skb_store_bytes(skb.cast(), at, from.cast(), length, 0) == 0 }
    }

    /// Whether there is an interface with that index. The reader device lives as long as the daemon; filters of clsact
    /// live longer, and must not send packets nowhere.
    #[inline(always)]
    fn exists(skb: *mut __sk_buff, interface: u32) -> bool {
        let mut mtu = 0;
        // SAFETY: a helper on the program's own context. It fails with a negative number only where the interface is
        // missing (Linux 5.12, net/core/filter.c); packets beyond its MTU give a positive one.
        unsafe { bpf_check_mtu(skb.cast(), interface, &raw mut mtu, 0, 0) >= 0 }
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
        // SAFETY: the program's own context.
        if unsafe { (*context.skb.skb).mark } == REDIRECTED {
            TcContext::new(context.skb.skb).skb.set_mark(0);
            return Err(Reason::ReturnedDirectly);
        }
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
