//! A rule's destination, as typed: whatever parses is written so that it parses to the same again.
#![no_main]

use interceptor::rules::Destination;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(destination) = text.parse::<Destination>() else {
        return;
    };
    assert_eq!(destination.to_string().parse(), Ok(destination));
});
