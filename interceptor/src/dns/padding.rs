//! Padding of messages on encrypted transports, so that their lengths tell less (RFC 7830, RFC 8467).

use super::wire::{BARE_OPT_LEN, Header, Scan, append_opt, put_u16, u16_at};

const OPTION_PADDING: u16 = 12;

/// Octets of an option's code and length.
const OPTION_HEADER: usize = 4;

/// Pads a message to a multiple of `block` octets, in its OPT record or in one that is added.
///
/// Left as they are: messages whose last record is another one, such as a signature, and those that padding would make
/// longer than a message can be.
pub(super) fn pad(message: &mut Vec<u8>, block: usize) {
    let Some(header) = Header::parse(message) else {
        return;
    };
    let [.., additionals] = header.records;
    let start = match Scan::of(message, header).opt {
        Some(opt) if opt.end == message.len() => opt.start,
        None if additionals == 0 => {
            let start = message.len();
            append_opt(message, 0, false, None);
            start
        }
        _ => return,
    };
    strip(message, start);
    let unpadded = message.len() + OPTION_HEADER;
    let padded = unpadded.next_multiple_of(block);
    if u16::try_from(padded).is_err() {
        return;
    }
    message.extend_from_slice(&OPTION_PADDING.to_be_bytes());
    message.extend_from_slice(&((padded - unpadded) as u16).to_be_bytes());
    message.resize(padded, 0);
    set_length(message, start);
}

/// Whether the OPT record between `start` and `end` has padding.
pub(super) fn is_in(message: &[u8], start: usize, end: usize) -> bool {
    let mut options = message.get(start + BARE_OPT_LEN..end).unwrap_or_default();
    while let (Some(code), Some(length)) = (u16_at(options, 0), u16_at(options, 2)) {
        if code == OPTION_PADDING {
            return true;
        }
        options = options
            .get(OPTION_HEADER + usize::from(length)..)
            .unwrap_or_default();
    }
    false
}

/// Removes padding from the OPT record that begins at `start` and ends with the message.
pub(super) fn strip(message: &mut Vec<u8>, start: usize) {
    let mut at = start + BARE_OPT_LEN;
    while let (Some(code), Some(length)) = (u16_at(message, at), u16_at(message, at + 2)) {
        let end = at + OPTION_HEADER + usize::from(length);
        if code == OPTION_PADDING && end <= message.len() {
            message.drain(at..end);
        } else {
            at = end;
        }
    }
    set_length(message, start);
}

fn set_length(message: &mut [u8], start: usize) {
    let rdata = message.len().saturating_sub(start + BARE_OPT_LEN);
    put_u16(message, start + BARE_OPT_LEN - 2, rdata as u16);
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    use proptest::prelude::*;

    use super::*;
    use crate::dns::testing;

    #[test]
    fn a_query_without_opt_gets_one_that_makes_it_a_whole_block() {
        let mut query = testing::query("short.example.", "A");
        pad(&mut query, 128);
        assert_eq!(query.len(), 128);
        let message = Message::from_vec(&query).unwrap();
        assert_eq!(message.edns.unwrap().max_payload(), 1232);
    }

    #[test]
    fn padding_that_is_there_is_replaced() {
        let mut query = testing::edns_query("padded.example.", "A", 1232);
        pad(&mut query, 468);
        pad(&mut query, 128);
        assert_eq!(query.len(), 128);
    }

    #[test]
    fn a_signed_query_is_left_alone() {
        let mut query = testing::query("signed.example.", "A");
        query[11] = 1;
        query.extend_from_slice(&[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0]);
        let before = query.clone();
        pad(&mut query, 128);
        assert_eq!(query, before);
    }

    #[test]
    fn other_options_survive() {
        let mut query = testing::edns_query("cookie.example.", "A", 1232);
        let length = query.len();
        query[length - 1] = 12;
        query.extend_from_slice(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let before = query.clone();
        pad(&mut query, 128);
        let edns = Message::from_vec(&query).unwrap().edns.unwrap();
        assert!(matches!(
            edns.option(EdnsCode::Cookie),
            Some(EdnsOption::Unknown(10, cookie)) if cookie.len() == 8
        ));
        strip(&mut query, length - BARE_OPT_LEN);
        assert_eq!(query, before);
    }

    proptest! {
        #[test]
        fn a_padded_query_is_whole_blocks_and_well_formed(
            labels in prop::collection::vec("[a-z]{1,20}", 1..6),
            edns in prop::option::of((any::<u16>(), any::<bool>())),
            block in 64usize..600,
        ) {
            let mut query = testing::arbitrary_query(7, &labels, 1, edns);
            pad(&mut query, block);
            prop_assert_eq!(query.len() % block, 0);
            let header = Header::parse(&query).unwrap();
            prop_assert_eq!(Scan::of(&query, header).error, None);
        }
    }
}
