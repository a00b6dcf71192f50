//! Messages and scripted far ends for tests; hickory-proto makes and reads the messages.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::service::{Flow, ReplySink, Responder};

/// The TTL in seconds of every record in [`reply_of`].
pub(super) const TTL: u32 = 300;

/// A query without OPT.
pub(super) fn query(name: &str, qtype: &str) -> Vec<u8> {
    query_message(name, qtype).to_vec().unwrap()
}

/// A query with an OPT record that has no options.
pub(super) fn edns_query(name: &str, qtype: &str, udp_size: u16) -> Vec<u8> {
    let mut message = query_message(name, qtype);
    message.set_edns(Edns::new());
    let mut octets = message.to_vec().unwrap();
    let size_at = octets.len() - 8;
    octets[size_at..size_at + 2].copy_from_slice(&udp_size.to_be_bytes());
    octets
}

/// A query that hickory makes of arbitrary parts: labels, type, OPT with UDP size and DO.
pub(super) fn arbitrary_query(
    id: u16,
    labels: &[String],
    qtype: u16,
    edns: Option<(u16, bool)>,
) -> Vec<u8> {
    let name = Name::from_labels(labels.iter().map(String::as_bytes)).unwrap();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::from(qtype)));
    if let Some((udp_size, dnssec_ok)) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(udp_size);
        edns.set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// A reply to `query` with `answers` A records, and OPT when the query has it.
pub(super) fn reply_of(query: &[u8], answers: usize) -> Vec<u8> {
    let mut reply = Message::from_vec(query).unwrap().into_response();
    reply.metadata.recursion_available = true;
    let edns = reply.edns.take();
    let mut octets = reply.to_vec().unwrap();
    let question_end = octets.len();
    reply.edns = edns;
    let whole = reply.to_vec().unwrap();
    octets[10..12].copy_from_slice(&whole[10..12]);
    octets[6..8].copy_from_slice(&(answers as u16).to_be_bytes());
    for number in 0..answers as u32 {
        octets.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        octets.extend_from_slice(&TTL.to_be_bytes());
        octets.extend_from_slice(&[0, 4]);
        octets.extend_from_slice(&(0x0a00_0000 + number).to_be_bytes());
    }
    octets.extend_from_slice(&whole[question_end..]);
    octets
}

/// The info-code of the extended error in a reply.
pub(super) fn extended_error(reply: &[u8]) -> Option<u16> {
    let edns = Message::from_vec(reply).unwrap().edns?;
    match edns.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, data) => Some(u16::from_be_bytes([data[0], data[1]])),
        _ => None,
    }
}

/// A header's worth of zeros, the root, and pointers each of which leads to the octets before it.
pub(super) fn pointer_chain(pointers: u16) -> Vec<u8> {
    let mut octets = vec![0; 13];
    octets.extend((0..pointers).flat_map(|number| {
        let target = if number == 0 { 12 } else { 11 + 2 * number };
        (0xc000 | target).to_be_bytes()
    }));
    octets
}

/// The next message on a stream; `None` at its end.
pub(super) async fn read_framed(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = stream.read_u16().await.ok()?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// Puts a message on a stream.
pub(super) async fn write_framed(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) {
    stream.write_u16(message.len() as u16).await.unwrap();
    stream.write_all(message).await.unwrap();
}

/// A responder whose replies arrive on the receiver, on a path that carries `max_payload` octets.
pub(super) fn responder(max_payload: usize) -> (Responder, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (replies, receiver) = mpsc::unbounded_channel();
    let sink = Arc::new(ChannelSink {
        replies,
        max_payload,
    });
    (Responder::new(flow(), sink), receiver)
}

/// A client that talks to a virtual address.
pub(super) fn flow() -> Flow {
    Flow {
        client: SocketAddr::from(([10, 0, 0, 2], 40000)),
        server: SocketAddr::from(([10, 30, 30, 30], 53)),
    }
}

struct ChannelSink {
    replies: mpsc::UnboundedSender<Vec<u8>>,
    max_payload: usize,
}

impl ReplySink for ChannelSink {
    fn send(&self, _flow: Flow, payload: &[u8]) {
        let _ = self.replies.send(payload.to_vec());
    }

    fn max_payload(&self, _flow: Flow) -> usize {
        self.max_payload
    }
}

fn query_message(name: &str, qtype: &str) -> Message {
    let qtype = match qtype.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
        None if qtype == "IXFR" => RecordType::IXFR,
        None => RecordType::from_str(qtype).unwrap(),
    };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), qtype));
    message
}
