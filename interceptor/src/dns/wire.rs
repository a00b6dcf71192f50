//! DNS messages in wire form: a bounds-checked walk over names and records, and small patches that re-encode nothing.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// Octets of a message's header (RFC 1035 §4.1.1).
pub const HEADER_LEN: usize = 12;

/// The UDP payload size we announce, and the largest UDP message we send, in octets (DNS flag day 2020).
pub const MAX_UDP_PAYLOAD: u16 = 1232;

/// The UDP payload size every client takes, in octets (RFC 1035 §4.2.1).
pub const MIN_UDP_PAYLOAD: u16 = 512;

/// Octets of an OPT record without options.
pub const BARE_OPT_LEN: usize = 11;

/// The cookie option (RFC 7873 §4).
pub const OPTION_COOKIE: u16 = 10;

/// Options that are between two neighbours and go no further: NSID, COOKIE, TCP-KEEPALIVE and PADDING (RFC 5001 §2.1, RFC
/// 7873 §5, RFC 7828 §3, RFC 7830 §6).
pub const NEIGHBOURS_OPTIONS: [u16; 4] = [3, OPTION_COOKIE, 11, 12];

/// Octets of the longest name (RFC 1035 §3.1).
pub const MAX_NAME_LEN: usize = 255;

/// Compression pointers of one name, as many as it can have labels; without a bound a chain of pointers that every
/// record begins with would make a message cost the square of its length.
const MAX_POINTERS: usize = MAX_NAME_LEN / 2;

const TYPE_OPT: u16 = 41;
const OPTION_EXTENDED_ERROR: u16 = 15;
const OPT_DNSSEC_OK: u16 = 0x8000;

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The ID that a reply repeats.
    pub id: u16,
    /// QR, opcode, flags and rcode.
    pub flags: Flags,
    /// Questions announced.
    pub questions: u16,
    /// Answer, authority and additional records announced.
    pub records: [u16; 3],
}

impl Header {
    /// The header of `message`; `None` when it is shorter than one.
    pub fn parse(message: &[u8]) -> Option<Self> {
        if message.len() < HEADER_LEN {
            return None;
        }
        let field = |at| u16_at(message, at);
        Some(Self {
            id: field(0)?,
            flags: Flags(field(2)?),
            questions: field(4)?,
            records: [field(6)?, field(8)?, field(10)?],
        })
    }
}

/// The second 16 bits of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// QR: the message is a response.
    pub const RESPONSE: Self = Self(0x8000);
    /// AA: the answer is the owner's own.
    pub const AUTHORITATIVE: Self = Self(0x0400);
    /// TC: the message was cut short.
    pub const TRUNCATED: Self = Self(0x0200);
    /// RD: recursion desired.
    pub const RECURSION_DESIRED: Self = Self(0x0100);
    /// RA: recursion available.
    pub const RECURSION_AVAILABLE: Self = Self(0x0080);
    /// AD: authentic data (RFC 4035 §3.2.3).
    pub const AUTHENTIC_DATA: Self = Self(0x0020);
    /// CD: checking disabled (RFC 4035 §3.2.2).
    pub const CHECKING_DISABLED: Self = Self(0x0010);
    /// The opcode's four bits.
    pub const OPCODE: Self = Self(0x7800);
    const RCODE: Self = Self(0x000f);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags and `flags`.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// What these flags have of `flags`.
    #[must_use]
    pub fn only(self, flags: Self) -> Self {
        Self(self.0 & flags.0)
    }

    /// The opcode; 0 is QUERY.
    pub fn opcode(self) -> u8 {
        (self.only(Self::OPCODE).0 >> 11) as u8
    }

    /// The lower four bits of the rcode, the upper ones being in OPT.
    pub fn rcode(self) -> Rcode {
        Rcode(self.only(Self::RCODE).0)
    }

    /// These flags without `flags`.
    #[must_use]
    pub fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    fn with_rcode(self, rcode: Rcode) -> Self {
        Self(self.0 & !Self::RCODE.0 | rcode.0 & Self::RCODE.0)
    }
}

/// A response code of twelve bits, extended by EDNS (RFC 6891 §6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    /// No error.
    pub const NOERROR: Self = Self(0);
    /// The query was malformed.
    pub const FORMERR: Self = Self(1);
    /// The server failed.
    pub const SERVFAIL: Self = Self(2);
    /// No such name.
    pub const NXDOMAIN: Self = Self(3);
    /// The opcode is not implemented.
    pub const NOTIMP: Self = Self(4);
    /// Refused by policy.
    pub const REFUSED: Self = Self(5);
    /// The EDNS version is not supported (RFC 6891 §9).
    pub const BADVERS: Self = Self(16);
    /// The server's cookie is missing or wrong (RFC 7873 §8).
    pub const BADCOOKIE: Self = Self(23);

    fn upper(self) -> u8 {
        (self.0 >> 4) as u8
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 12] = [
            "NOERROR",
            "FORMERR",
            "SERVFAIL",
            "NXDOMAIN",
            "NOTIMP",
            "REFUSED",
            "YXDOMAIN",
            "YXRRSET",
            "NXRRSET",
            "NOTAUTH",
            "NOTZONE",
            "DSOTYPENI",
        ];
        match self.0 {
            16 => f.write_str("BADVERS"),
            23 => f.write_str("BADCOOKIE"),
            code => match NAMES.get(usize::from(code)) {
                Some(name) => f.write_str(name),
                None => write!(f, "RCODE{code}"),
            },
        }
    }
}

/// Why bytes are no DNS message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// Something announced is not there.
    #[error("the message ends early")]
    EndsEarly,
    /// A label type, a pointer or a length that names cannot have.
    #[error("a name is malformed")]
    Name,
    /// OPT where or as it cannot be, or twice (RFC 6891 §6.1.1).
    #[error("OPT is malformed")]
    Opt,
    /// Octets after the last record announced.
    #[error("octets follow the last record")]
    TrailingBytes,
}

/// The one question of a message, which begins where the header ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Offset of the first octet after it.
    pub end: usize,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
}

impl Question {
    /// Where name, type and class are in the message.
    pub fn range(self) -> Range<usize> {
        HEADER_LEN..self.end
    }
}

/// An OPT record (RFC 6891 §6.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Offset of its first octet.
    pub start: usize,
    /// Offset of the first octet after it.
    pub end: usize,
    /// Additional records before it.
    pub preceding: u16,
    /// The UDP payload size its sender takes, in octets.
    pub udp_size: u16,
    /// The upper eight bits of the rcode.
    pub rcode_upper: u8,
    /// The EDNS version.
    pub version: u8,
    /// DO: DNSSEC records are wanted (RFC 3225).
    pub dnssec_ok: bool,
}

impl Opt {
    /// Offset of the UDP payload size.
    pub fn udp_size_at(self) -> usize {
        self.start + 3
    }

    /// The data of the first option of `code` in `message`.
    pub fn option(self, message: &[u8], code: u16) -> Option<&[u8]> {
        let mut options = message.get(self.start + BARE_OPT_LEN..self.end)?;
        loop {
            let end = 4 + usize::from(u16_at(options, 2)?);
            if u16_at(options, 0)? == code {
                return options.get(4..end);
            }
            options = options.get(end..)?;
        }
    }

    /// This record in `message` without options of `code`; nothing is changed where it has none.
    #[must_use]
    pub fn without_option(self, message: &mut Cow<'_, [u8]>, code: u16) -> Self {
        let mut end = self.end;
        let mut at = self.start + BARE_OPT_LEN;
        while let Some(length) = u16_at(message, at + 2).filter(|_| at + 4 <= end) {
            let next = at + 4 + usize::from(length);
            if u16_at(message, at) == Some(code) && next <= end {
                message.to_mut().drain(at..next);
                end -= next - at;
            } else {
                at = next;
            }
        }
        if end != self.end {
            let rdata = end.saturating_sub(self.start + BARE_OPT_LEN) as u16;
            put_u16(message.to_mut(), self.start + BARE_OPT_LEN - 2, rdata);
        }
        Self { end, ..self }
    }

    fn parse(message: &[u8], record: &Record, preceding: u16) -> Result<Self, WireError> {
        let has_root_owner = record.rdata.start == record.start + BARE_OPT_LEN;
        if record.section != Section::Additional || !has_root_owner {
            return Err(WireError::Opt);
        }
        let mut rest = message.get(record.rdata.clone()).unwrap_or_default();
        while !rest.is_empty() {
            let length = u16_at(rest, 2).ok_or(WireError::Opt)?;
            rest = rest.get(4 + usize::from(length)..).ok_or(WireError::Opt)?;
        }
        Ok(Self {
            start: record.start,
            end: record.rdata.end,
            preceding,
            udp_size: record.class,
            rcode_upper: (record.ttl >> 24) as u8,
            version: (record.ttl >> 16) as u8,
            dnssec_ok: record.ttl as u16 & OPT_DNSSEC_OK != 0,
        })
    }
}

/// Which section a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Answers.
    Answer,
    /// Authorities.
    Authority,
    /// Additional records.
    Additional,
}

/// One record, by its offsets in the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The section it is in.
    pub section: Section,
    /// Offset of its owner name.
    pub start: usize,
    /// Its type.
    pub rtype: u16,
    /// Its class; in OPT the UDP payload size.
    pub class: u16,
    /// Its TTL in seconds; in OPT rcode, version and flags.
    pub ttl: u32,
    /// Offset of the TTL's four octets.
    pub ttl_at: usize,
    /// Where its data is.
    pub rdata: Range<usize>,
}

impl Record {
    /// Whether it is OPT, which has no TTL and is not data.
    pub fn is_opt(&self) -> bool {
        self.rtype == TYPE_OPT
    }
}

/// The records of a message, in order; ends after the first that is malformed.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
}

impl<'a> Records<'a> {
    /// The records of `message`, which has `header` and whose records begin at `start`.
    pub fn new(message: &'a [u8], header: Header, start: usize) -> Self {
        Self {
            message,
            at: start,
            left: header.records,
        }
    }

    fn parse(&self, section: Section) -> Result<Record, WireError> {
        let fixed = skip_name(self.message, self.at)?;
        let field = |offset| u16_at(self.message, fixed + offset).ok_or(WireError::EndsEarly);
        let rdata_start = fixed + 10;
        let rdata = rdata_start..rdata_start + usize::from(field(8)?);
        if rdata.end > self.message.len() {
            return Err(WireError::EndsEarly);
        }
        Ok(Record {
            section,
            start: self.at,
            rtype: field(0)?,
            class: field(2)?,
            ttl: u32::from(field(4)?) << 16 | u32::from(field(6)?),
            ttl_at: fixed + 4,
            rdata,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        const SECTIONS: [Section; 3] = [Section::Answer, Section::Authority, Section::Additional];
        let (left, section) = self
            .left
            .iter_mut()
            .zip(SECTIONS)
            .find(|(left, _)| **left > 0)?;
        *left -= 1;
        let parsed = self.parse(section);
        match &parsed {
            Ok(record) => self.at = record.rdata.end,
            Err(_) => self.left = [0; 3],
        }
        Some(parsed)
    }
}

/// What one walk over a whole message finds, as far as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The question, where there is exactly one and it is well-formed.
    pub question: Option<Question>,
    /// The OPT record: the first one.
    pub opt: Option<Opt>,
    /// Why the walk did not reach the end.
    pub error: Option<WireError>,
}

impl Scan {
    /// Walks over `message`, which has `header`, to its end.
    pub fn of(message: &[u8], header: Header) -> Self {
        let mut scan = Self {
            question: None,
            opt: None,
            error: None,
        };
        scan.error = scan.walk(message, header).err();
        scan
    }

    /// Reads the question of `message`, which has `header`, and leaves the records alone.
    pub fn of_question(message: &[u8], header: Header) -> Self {
        let question = match header.questions {
            1 => parse_question(message, HEADER_LEN).map(Some),
            _ => Ok(None),
        };
        Self {
            question: question.unwrap_or_default(),
            opt: None,
            error: question.err(),
        }
    }

    fn walk(&mut self, message: &[u8], header: Header) -> Result<(), WireError> {
        let mut at = HEADER_LEN;
        for _ in 0..header.questions {
            let question = parse_question(message, at)?;
            at = question.end;
            if header.questions == 1 {
                self.question = Some(question);
            }
        }
        let mut records = Records::new(message, header, at);
        let mut additionals = 0;
        for record in &mut records {
            let record = record?;
            if record.is_opt() {
                let opt = Opt::parse(message, &record, additionals)?;
                if self.opt.is_some() {
                    return Err(WireError::Opt);
                }
                self.opt = Some(opt);
            }
            additionals += u16::from(record.section == Section::Additional);
        }
        if records.at != message.len() {
            return Err(WireError::TrailingBytes);
        }
        Ok(())
    }
}

/// An extended error for OPT (RFC 8914): what an rcode cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    /// The info-code.
    pub code: u16,
    /// A text for people; empty says nothing.
    pub text: &'static str,
}

impl ExtendedError {
    /// None of the other codes fits.
    pub const OTHER: u16 = 0;
    /// A stale answer (RFC 8767).
    pub const STALE_ANSWER: u16 = 3;
    /// A failure that is remembered (RFC 9520).
    pub const CACHED_ERROR: u16 = 13;
    /// A stale answer that says that there is no such name.
    pub const STALE_NXDOMAIN_ANSWER: u16 = 19;
    /// The request is not supported.
    pub const NOT_SUPPORTED: u16 = 21;
    /// No authority, or here no upstream, could be reached.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    /// The network failed.
    pub const NETWORK_ERROR: u16 = 23;
}

/// What an error reply repeats of its query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The query's header.
    pub header: Header,
    /// Its question, where it could be read.
    pub question: Option<Question>,
    /// Its OPT record, where it has one.
    pub opt: Option<Opt>,
}

impl Echo {
    /// How a reply to `query` begins: header and question, `flags` beside those that every reply has, no records yet, and
    /// `room` octets to spare beyond OPT.
    pub fn reply_head(&self, query: &[u8], rcode: Rcode, flags: Flags, room: usize) -> Vec<u8> {
        let question = self
            .question
            .and_then(|question| query.get(question.range()))
            .unwrap_or_default();
        let kept = Flags::OPCODE
            .with(Flags::RECURSION_DESIRED)
            .with(Flags::CHECKING_DISABLED);
        let flags = flags
            .with(self.header.flags.only(kept))
            .with(Flags::RESPONSE)
            .with(Flags::RECURSION_AVAILABLE)
            .with_rcode(rcode);
        let mut reply = Vec::with_capacity(HEADER_LEN + question.len() + BARE_OPT_LEN + room);
        let counts = [u16::from(!question.is_empty()), 0, 0, 0];
        for field in [self.header.id, flags.0].into_iter().chain(counts) {
            reply.extend_from_slice(&field.to_be_bytes());
        }
        reply.extend_from_slice(question);
        reply
    }

    /// A reply to `query` that says `rcode`, with OPT exactly when the query has it.
    pub fn error_reply(
        &self,
        query: &[u8],
        rcode: Rcode,
        extended: Option<ExtendedError>,
    ) -> Vec<u8> {
        let room = 6 + extended.map_or(0, |extended| extended.text.len());
        let mut reply = self.reply_head(query, rcode, Flags::default(), room);
        if let Some(opt) = self.opt {
            append_opt(&mut reply, rcode.upper(), opt.dnssec_ok, extended);
        }
        reply
    }
}

/// Appends an OPT record with our UDP payload size and counts it.
pub fn append_opt(
    message: &mut Vec<u8>,
    rcode_upper: u8,
    dnssec_ok: bool,
    extended: Option<ExtendedError>,
) {
    let flags = if dnssec_ok { OPT_DNSSEC_OK } else { 0 };
    message.push(0);
    message.extend_from_slice(&TYPE_OPT.to_be_bytes());
    message.extend_from_slice(&MAX_UDP_PAYLOAD.to_be_bytes());
    message.extend_from_slice(&[rcode_upper, 0]);
    message.extend_from_slice(&flags.to_be_bytes());
    match extended {
        None => message.extend_from_slice(&[0, 0]),
        Some(extended) => {
            let length = 2 + extended.text.len() as u16;
            message.extend_from_slice(&(4 + length).to_be_bytes());
            message.extend_from_slice(&OPTION_EXTENDED_ERROR.to_be_bytes());
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(&extended.code.to_be_bytes());
            message.extend_from_slice(extended.text.as_bytes());
        }
    }
    let additionals = u16_at(message, 10).unwrap_or_default();
    put_u16(message, 10, additionals.saturating_add(1));
}

/// Cuts `message` down to header, question and OPT with TC set where it is longer than `limit` octets (RFC 2181 §9);
/// tells whether it was cut.
///
/// OPT's options go as well where they do not fit. What is left may exceed a `limit` that is too small for a question.
pub fn truncate(message: &mut Vec<u8>, limit: usize) -> bool {
    if message.len() <= limit {
        return false;
    }
    let Some(header) = Header::parse(message) else {
        return false;
    };
    let scan = Scan::of(message, header);
    let end = scan.question.map_or(HEADER_LEN, |question| question.end);
    put_u16(message, 2, header.flags.with(Flags::TRUNCATED).0);
    put_u16(message, 4, u16::from(scan.question.is_some()));
    for count_at in [6, 8, 10] {
        put_u16(message, count_at, 0);
    }
    match scan.opt {
        None => message.truncate(end),
        Some(opt) if end + (opt.end - opt.start) <= limit => {
            message.copy_within(opt.start..opt.end, end);
            message.truncate(end + (opt.end - opt.start));
            put_u16(message, 10, 1);
        }
        Some(opt) => {
            message.truncate(end);
            append_opt(message, opt.rcode_upper, opt.dnssec_ok, None);
        }
    }
    true
}

/// Replaces the rcode's lower four bits.
pub fn set_rcode(message: &mut [u8], rcode: Rcode) {
    let flags = Flags(u16_at(message, 2).unwrap_or_default());
    put_u16(message, 2, flags.with_rcode(rcode).0);
}

/// The two octets of `message` at offset `at`, in network byte order.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let octets = message.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*octets))
}

/// Writes two octets at offset `at`, in network byte order; nothing where `message` is too short.
pub fn put_u16(message: &mut [u8], at: usize, value: u16) {
    if let Some(octets) = message
        .get_mut(at..)
        .and_then(|rest| rest.first_chunk_mut::<2>())
    {
        *octets = value.to_be_bytes();
    }
}

/// The offset of the first octet after the name at `start`, which may be compressed (RFC 1035 §4.1.4).
///
/// A pointer leads to an earlier name, whose labels lie before those that point to it. This is how compression loops
/// end, and why a name stays whole when what follows it is removed. Pointers are at most as many as labels can be.
pub fn skip_name(message: &[u8], start: usize) -> Result<usize, WireError> {
    let mut at = start;
    let mut pointers_below = start;
    let mut labels_below = usize::MAX;
    let mut end = None;
    let mut length = 1;
    let mut pointers = 0;
    loop {
        if at >= labels_below {
            return Err(WireError::Name);
        }
        let octet = *message.get(at).ok_or(WireError::EndsEarly)?;
        match octet >> 6 {
            0 if octet == 0 => return Ok(end.unwrap_or(at + 1)),
            0 => {
                length += 1 + usize::from(octet);
                at += 1 + usize::from(octet);
                if length > MAX_NAME_LEN {
                    return Err(WireError::Name);
                }
            }
            3 => {
                let pointer = u16_at(message, at).ok_or(WireError::EndsEarly)?;
                let target = usize::from(pointer & 0x3fff);
                pointers += 1;
                if pointers > MAX_POINTERS || !(HEADER_LEN..pointers_below).contains(&target) {
                    return Err(WireError::Name);
                }
                end.get_or_insert(at + 2);
                labels_below = pointers_below;
                pointers_below = target;
                at = target;
            }
            _ => return Err(WireError::Name),
        }
    }
}

/// The name at `start` without compression, in wire form and lower case; at most 255 octets.
pub fn read_name(message: &[u8], start: usize) -> Result<Vec<u8>, WireError> {
    skip_name(message, start)?;
    let mut name = Vec::new();
    let mut at = start;
    loop {
        let octet = *message.get(at).ok_or(WireError::EndsEarly)?;
        if octet >> 6 == 3 {
            let pointer = u16_at(message, at).ok_or(WireError::EndsEarly)?;
            at = usize::from(pointer & 0x3fff);
            continue;
        }
        let next = at + 1 + usize::from(octet);
        name.extend_from_slice(message.get(at..next).ok_or(WireError::EndsEarly)?);
        at = next;
        if octet == 0 {
            name.make_ascii_lowercase();
            return Ok(name);
        }
    }
}

fn parse_question(message: &[u8], start: usize) -> Result<Question, WireError> {
    let fixed = skip_name(message, start)?;
    let field = |offset| u16_at(message, fixed + offset).ok_or(WireError::EndsEarly);
    Ok(Question {
        end: fixed + 4,
        qtype: field(0)?,
        qclass: field(2)?,
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::*;
    use crate::dns::testing;

    #[test]
    fn a_name_that_points_at_itself_is_refused() {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(&[0xc0, 12]);
        assert_eq!(skip_name(&message, 12), Err(WireError::Name));
    }

    #[test]
    fn two_names_that_point_at_each_other_are_refused() {
        let mut message = vec![0; HEADER_LEN];
        message.extend_from_slice(&[0xc0, 14, 0xc0, 12]);
        assert_eq!(skip_name(&message, 14), Err(WireError::Name));
    }

    #[test]
    fn a_name_that_goes_on_beyond_the_pointer_to_it_is_refused() {
        let prior = [&[0; HEADER_LEN], b"\x01a\0\xc0\x0c\x01b\0".as_slice()].concat();
        assert_eq!(skip_name(&prior, 15), Ok(17));
        let running_on = [&[0; HEADER_LEN], b"\x04a..\xc0\x0c\x01b\0".as_slice()].concat();
        assert_eq!(skip_name(&running_on, 16), Err(WireError::Name));
    }

    #[test]
    fn a_pointer_into_the_header_is_refused() {
        let message = [[0; HEADER_LEN].as_slice(), &[0xc0, 0]].concat();
        assert_eq!(skip_name(&message, 12), Err(WireError::Name));
    }

    #[test]
    fn a_name_of_more_pointers_than_labels_can_be_is_refused() {
        let chain = testing::pointer_chain(200);
        let after = |pointers: usize| HEADER_LEN + 1 + 2 * pointers;
        assert_eq!(skip_name(&chain, after(126)), Ok(after(127)));
        assert_eq!(skip_name(&chain, after(127)), Err(WireError::Name));
    }

    #[test]
    fn a_name_of_255_octets_is_taken_and_one_of_256_refused() {
        let name = |last: u8| {
            let mut name = Vec::new();
            for length in [63, 63, 63, last] {
                name.push(length);
                name.extend(std::iter::repeat_n(b'a', usize::from(length)));
            }
            name.push(0);
            name
        };
        let longest = name(61);
        assert_eq!(longest.len(), 255);
        assert_eq!(skip_name(&longest, 0), Ok(255));
        assert_eq!(skip_name(&name(62), 0), Err(WireError::Name));
    }

    #[test]
    fn a_label_with_reserved_type_bits_is_refused() {
        assert_eq!(skip_name(&[0x41, 0, 0], 0), Err(WireError::Name));
        assert_eq!(skip_name(&[0x81, 0, 0], 0), Err(WireError::Name));
    }

    #[test]
    fn the_walk_finds_every_record_and_its_ttl() {
        let message = testing::reply_of(&testing::query("many.example.", "A"), 3);
        let header = Header::parse(&message).unwrap();
        let start = Scan::of(&message, header).question.unwrap().end;
        let records: Vec<Record> = Records::new(&message, header, start)
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(records.len(), 3);
        for record in records {
            let octets = message[record.ttl_at..record.ttl_at + 4]
                .try_into()
                .unwrap();
            assert_eq!(u32::from_be_bytes(octets), testing::TTL);
            assert_eq!(record.ttl, testing::TTL);
        }
    }

    #[test]
    fn a_truncated_reply_keeps_question_and_opt_and_nothing_else() {
        let query = testing::edns_query("many.example.", "A", 1232);
        let mut reply = testing::reply_of(&query, 200);
        assert!(truncate(&mut reply, 512));
        let parsed = Message::from_vec(&reply).unwrap();
        assert!(reply.len() <= 512);
        assert!(parsed.metadata.truncation);
        assert_eq!(parsed.queries.len(), 1);
        assert!(parsed.answers.is_empty());
        assert!(parsed.edns.is_some());
    }

    #[test]
    fn a_reply_that_fits_is_left_alone() {
        let mut reply = testing::reply_of(&testing::query("one.example.", "A"), 1);
        let before = reply.clone();
        assert!(!truncate(&mut reply, before.len()));
        assert_eq!(reply, before);
    }

    proptest! {
        #[test]
        fn walking_arbitrary_octets_never_panics(message in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(header) = Header::parse(&message) {
                let _ = Scan::of(&message, header);
            }
            for start in 0..message.len() {
                let _ = skip_name(&message, start);
            }
        }

        #[test]
        fn walking_octets_that_begin_like_a_message_never_panics(
            counts in prop::array::uniform4(0u8..3),
            body in prop::collection::vec(prop_oneof![Just(0u8), Just(0xc0), Just(12), Just(41), any::<u8>()], 0..200),
        ) {
            let mut message = vec![0; 4];
            for count in counts {
                message.extend_from_slice(&[0, count]);
            }
            message.extend(body);
            let header = Header::parse(&message).unwrap();
            let _ = Scan::of(&message, header);
            let before = message.len();
            let cut = truncate(&mut message, 20);
            prop_assert!(cut || before <= 20);
        }

        #[test]
        fn a_truncated_reply_can_always_be_parsed(
            answers in 0usize..100,
            limit in 100usize..1300,
            edns in any::<bool>(),
        ) {
            let query = if edns {
                testing::edns_query("truncated.example.", "A", 4096)
            } else {
                testing::query("truncated.example.", "A")
            };
            let mut reply = testing::reply_of(&query, answers);
            truncate(&mut reply, limit);
            prop_assert!(reply.len() <= limit);
            let header = Header::parse(&reply).unwrap();
            prop_assert_eq!(Scan::of(&reply, header).error, None);
            let parsed = Message::from_vec(&reply).unwrap();
            prop_assert_eq!(parsed.edns.is_some(), edns);
        }
    }
}
