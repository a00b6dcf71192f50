//! A reply as people and scripts read it, in the manner of dig.

use std::fmt::Write;

use anyhow::Context;
use hickory_proto::op::{Edns, Message};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{RData, Record};
use serde_json::{Value, json};

use crate::control::{Answered, QueryStep, Question};
use crate::dns::cache::Qtype;
use crate::dns::wire::{Flags, Header, Rcode};

use crate::cli::table::Table;

/// The extended error (RFC 8914 §2).
const OPTION_EXTENDED_ERROR: u16 = 15;

/// A reply that was read.
pub(super) struct Reply {
    message: Message,
    flags: Flags,
    octets: usize,
}

/// Why the answer is what it is, where the rcode does not say it.
struct ExtendedError {
    code: u16,
    text: String,
}

impl Reply {
    pub(super) fn read(octets: &[u8]) -> anyhow::Result<Self> {
        let header = Header::parse(octets).context("the answer is shorter than a header")?;
        let message = Message::from_vec(octets).context("the answer cannot be read")?;
        Ok(Self {
            message,
            flags: header.flags,
            octets: octets.len(),
        })
    }

    /// As dig shows it, with what answered and why at its end.
    pub(super) fn text(&self, question: &Question, answered: &Answered) -> String {
        let mut text = format!(
            "; <<>> interceptor {} <<>> {} {}\n",
            env!("CARGO_PKG_VERSION"),
            printable(&question.name),
            question.qtype
        );
        self.header(&mut text);
        self.edns(&mut text);
        let _ = writeln!(text, "\n;; QUESTION SECTION:");
        for query in &self.message.queries {
            let qtype = Qtype(query.query_type().into());
            let name = query.name().to_ascii();
            let _ = writeln!(text, ";{name}\t\t{}\t{qtype}", query.query_class());
        }
        for (title, records) in self.sections() {
            if !records.is_empty() {
                let _ = writeln!(text, "\n;; {title} SECTION:");
            }
            for record in records {
                let (name, class) = (record.name.to_ascii(), record.dns_class);
                let (rtype, data) = (rtype(record), data(&record.data));
                let _ = writeln!(text, "{name}\t{}\t{class}\t{rtype}\t{data}", record.ttl);
            }
        }
        let _ = writeln!(text, "\n;; ANSWERED BY: {}", answered_by(answered));
        if !answered.steps.is_empty() {
            let _ = write!(text, ";; STEPS:\n{}", steps(&answered.steps));
        }
        let _ = writeln!(
            text,
            ";; Query time: {}",
            milliseconds(answered.microseconds)
        );
        let _ = writeln!(text, ";; MSG SIZE  rcvd: {}", self.octets);
        text
    }

    /// The data of the answers, each on a line.
    pub(super) fn short(&self) -> String {
        let answers = self.message.answers.iter();
        answers.map(|it| data(&it.data) + "\n").collect()
    }

    pub(super) fn to_json(&self, answered: &Answered) -> Value {
        let section =
            |records: &[Record]| -> Vec<Value> { records.iter().map(record_json).collect() };
        let questions = self.message.queries.iter().map(|query| {
            json!({
                "name": query.name().to_ascii(),
                "class": query.query_class().to_string(),
                "type": Qtype(query.query_type().into()).to_string(),
            })
        });
        let edns = self.message.edns.as_ref().map(|edns| {
            let errors = extended_errors(edns).into_iter();
            let errors = errors.map(|it| json!({"code": it.code, "text": it.text}));
            json!({
                "version": edns.version(),
                "dnssec_ok": edns.flags().dnssec_ok,
                "udp_payload": edns.max_payload(),
                "extended_errors": errors.collect::<Vec<_>>(),
            })
        });
        json!({
            "id": self.message.metadata.id,
            "rcode": self.rcode().to_string(),
            "flags": self.flag_names(),
            "edns": edns,
            "question": questions.collect::<Vec<_>>(),
            "answer": section(&self.message.answers),
            "authority": section(&self.message.authorities),
            "additional": section(&self.message.additionals),
            "octets": self.octets,
            "answered_by": answered_by(answered),
            "steps": answered.steps,
            "microseconds": answered.microseconds,
        })
    }

    fn header(&self, text: &mut String) {
        let metadata = &self.message.metadata;
        let _ = writeln!(
            text,
            ";; ->>HEADER<<- opcode: QUERY, status: {}, id: {}",
            self.rcode(),
            metadata.id
        );
        let [answers, authorities, additionals] = self.sections().map(|(_, it)| it.len());
        let _ = writeln!(
            text,
            ";; flags: {}; QUERY: {}, ANSWER: {answers}, AUTHORITY: {authorities}, ADDITIONAL: {}",
            self.flag_names().join(" "),
            self.message.queries.len(),
            additionals + usize::from(self.message.edns.is_some())
        );
    }

    fn edns(&self, text: &mut String) {
        let Some(edns) = &self.message.edns else {
            return;
        };
        let flags = if edns.flags().dnssec_ok { " do" } else { "" };
        let _ = writeln!(
            text,
            "\n;; OPT PSEUDOSECTION:\n; EDNS: version: {}, flags:{flags}; udp: {}",
            edns.version(),
            edns.max_payload()
        );
        for ExtendedError { code, text: reason } in extended_errors(edns) {
            let _ = match reason.as_str() {
                "" => writeln!(text, "; EDE: {code}"),
                reason => writeln!(text, "; EDE: {code}: ({reason})"),
            };
        }
    }

    fn sections(&self) -> [(&'static str, &[Record]); 3] {
        [
            ("ANSWER", &self.message.answers),
            ("AUTHORITY", &self.message.authorities),
            ("ADDITIONAL", &self.message.additionals),
        ]
    }

    /// With the bits that OPT adds.
    fn rcode(&self) -> Rcode {
        Rcode(self.message.metadata.response_code.into())
    }

    fn flag_names(&self) -> Vec<&'static str> {
        let names = [
            (Flags::RESPONSE, "qr"),
            (Flags::AUTHORITATIVE, "aa"),
            (Flags::TRUNCATED, "tc"),
            (Flags::RECURSION_DESIRED, "rd"),
            (Flags::RECURSION_AVAILABLE, "ra"),
            (Flags::AUTHENTIC_DATA, "ad"),
            (Flags::CHECKING_DISABLED, "cd"),
        ];
        let set = names.iter().filter(|(flag, _)| self.flags.contains(*flag));
        set.map(|(_, name)| *name).collect()
    }
}

fn answered_by(answered: &Answered) -> String {
    let decisive = answered.decisive.and_then(|it| answered.steps.get(it));
    match decisive {
        Some(step) if step.transport.is_none() => format!("{}, {}", step.who, step.outcome),
        Some(step) => format!("{} over {}", step.who, transport(step)),
        None => "nobody; there was no answer to be had".to_owned(),
    }
}

fn steps(steps: &[QueryStep]) -> String {
    let mut table = Table::new(&["AT", "TOOK", "WHO", "OVER", "OUTCOME"], &[0, 1]);
    for step in steps {
        let took = match (step.took_microseconds, &step.transport) {
            (Some(took), Some(_)) => milliseconds(took),
            _ => "-".to_owned(),
        };
        table.row([
            milliseconds(step.began_microseconds),
            took,
            step.who.clone(),
            transport(step).to_owned(),
            printable(&step.outcome),
        ]);
    }
    table.render(";  ")
}

fn transport(step: &QueryStep) -> &str {
    step.transport.as_deref().unwrap_or("-")
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

fn record_json(record: &Record) -> Value {
    json!({
        "name": record.name.to_ascii(),
        "ttl": record.ttl,
        "class": record.dns_class.to_string(),
        "type": rtype(record),
        "data": data(&record.data),
    })
}

fn rtype(record: &Record) -> String {
    Qtype(record.record_type().into()).to_string()
}

/// A record's data as a zone file has it, without control characters.
fn data(data: &RData) -> String {
    match data {
        RData::CNAME(name) => name.0.to_ascii(),
        RData::NS(name) => name.0.to_ascii(),
        RData::PTR(name) => name.0.to_ascii(),
        RData::MX(mx) => format!("{} {}", mx.preference, mx.exchange.to_ascii()),
        RData::SRV(srv) => format!(
            "{} {} {} {}",
            srv.priority,
            srv.weight,
            srv.port,
            srv.target.to_ascii()
        ),
        RData::TXT(txt) => {
            let strings = txt.txt_data.iter().map(|it| quoted(it));
            strings.collect::<Vec<_>>().join(" ")
        }
        RData::Unknown { rdata, .. } => unknown(&rdata.anything),
        other => printable(&other.to_string()),
    }
}

/// A character string (RFC 1035 §5.1).
fn quoted(octets: &[u8]) -> String {
    let mut text = String::from("\"");
    for octet in octets {
        let _ = match octet {
            b'"' | b'\\' => write!(text, "\\{}", char::from(*octet)),
            b' '..=b'~' => write!(text, "{}", char::from(*octet)),
            _ => write!(text, "\\{octet:03}"),
        };
    }
    text + "\""
}

/// Data of a type that is not known (RFC 3597 §5).
fn unknown(octets: &[u8]) -> String {
    let mut text = format!("\\# {}", octets.len());
    if !octets.is_empty() {
        text.push(' ');
    }
    for octet in octets {
        let _ = write!(text, "{octet:02X}");
    }
    text
}

fn extended_errors(edns: &Edns) -> Vec<ExtendedError> {
    let options = edns.options().as_ref().iter();
    let errors = options.filter_map(|(_, option)| match option {
        EdnsOption::Unknown(OPTION_EXTENDED_ERROR, data) => {
            let (code, text) = data.split_first_chunk()?;
            Some(ExtendedError {
                code: u16::from_be_bytes(*code),
                text: printable(&String::from_utf8_lossy(text)),
            })
        }
        _ => None,
    });
    errors.collect()
}

fn printable(text: &str) -> String {
    let characters = text.chars();
    let escaped = characters.map(|c| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::{MX, TXT};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_is_shown_as_dig_shows_it_with_what_answered_and_why() {
        let question = Question {
            name: "www.example".to_owned(),
            qtype: "A".to_owned(),
            tcp: false,
            dnssec_ok: false,
            checking_disabled: false,
        };
        let reply = Reply::read(&message()).unwrap();
        assert_eq!(
            reply.text(&question, &answered()),
            "\
; <<>> interceptor 0.1.0 <<>> www.example A
;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 7
;; flags: qr rd ra; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1

;; OPT PSEUDOSECTION:
; EDNS: version: 0, flags: do; udp: 1232
; EDE: 3: (stale)

;; QUESTION SECTION:
;www.example.\t\tIN\tA

;; ANSWER SECTION:
www.example.\t300\tIN\tA\t192.0.2.1

;; ANSWERED BY: udp://192.0.2.53 over udp
;; STEPS:
;       AT     TOOK  WHO               OVER  OUTCOME
;  0.02 ms        -  memory            -     nothing fresh
;  0.04 ms  1.23 ms  udp://192.0.2.53  udp   NOERROR
;; Query time: 1.30 ms
;; MSG SIZE  rcvd: 67
"
        );
        assert_eq!(reply.short(), "192.0.2.1\n");
    }

    #[test]
    fn json_has_every_section_and_what_answered() {
        let json = Reply::read(&message()).unwrap().to_json(&answered());
        assert_eq!(json["rcode"], "NOERROR");
        assert_eq!(json["answer"][0]["data"], "192.0.2.1");
        assert_eq!(json["edns"]["extended_errors"][0]["code"], 3);
        assert_eq!(json["answered_by"], "udp://192.0.2.53 over udp");
        assert_eq!(json["steps"][1]["took_microseconds"], 1234);
    }

    #[test]
    fn data_are_written_as_zone_files_have_them() {
        let name = Name::from_ascii("MaiL.example.").unwrap();
        assert_eq!(data(&RData::MX(MX::new(10, name))), "10 MaiL.example.");
        let txt = TXT::from_bytes(vec![b"two \"words\"", b"\x1b[2J\\"]);
        assert_eq!(data(&RData::TXT(txt)), r#""two \"words\"" "\027[2J\\""#);
        assert_eq!(unknown(&[0xde, 0xad]), "\\# 2 DEAD");
        assert_eq!(unknown(&[]), "\\# 0");
    }

    proptest! {
        #[test]
        fn a_damaged_reply_is_refused_or_shown_without_control_characters(
            at in 2usize..67,
            octet in any::<u8>(),
        ) {
            let mut message = message();
            if let Some(damaged) = message.get_mut(at) {
                *damaged = octet;
            }
            if let Ok(reply) = Reply::read(&message) {
                let json = reply.to_json(&answered()).to_string();
                prop_assert!(!json.contains(char::is_control));
                let short = reply.short();
                prop_assert!(short.lines().all(|it| !it.contains(char::is_control)));
            }
        }
    }

    fn message() -> Vec<u8> {
        let name = Name::from_ascii("www.example.").unwrap();
        let mut message = Message::response(7, hickory_proto::op::OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        message.add_query(Query::query(name.clone(), RecordType::A));
        let address = "192.0.2.1".parse().unwrap();
        message.add_answer(Record::from_rdata(name, 300, RData::A(address)));
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns.set_dnssec_ok(true);
        let stale = [&3u16.to_be_bytes()[..], b"stale"].concat();
        (edns.options_mut()).insert(EdnsOption::Unknown(OPTION_EXTENDED_ERROR, stale));
        message.set_edns(edns);
        message.to_vec().unwrap()
    }

    fn answered() -> Answered {
        let step = |who: &str, over: Option<&str>, began, took, outcome: &str| QueryStep {
            who: who.to_owned(),
            transport: over.map(str::to_owned),
            began_microseconds: began,
            took_microseconds: Some(took),
            outcome: outcome.to_owned(),
        };
        Answered {
            message: String::new(),
            rcode: "NOERROR".to_owned(),
            decisive: Some(1),
            steps: vec![
                step("memory", None, 21, 0, "nothing fresh"),
                step("udp://192.0.2.53", Some("udp"), 40, 1234, "NOERROR"),
            ],
            microseconds: 1300,
        }
    }
}
