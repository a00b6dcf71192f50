//! What a person writes, and what the configuration makes of it or says against it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::dns::{CacheConfig, FailOn, Strategy, Target, Via};

#[test]
fn with_nothing_set_everything_has_a_default() {
    let config = Given::nothing().load().unwrap();
    assert_eq!(
        config.to_toml(),
        r#"[tunnel]
interfaces = []
attach = "auto"
share = false

[virtual]
addresses = ["10.30.30.30","fd30:30:30::30"]

[reader]
kind = "auto"
routes = "auto"
busy_poll = "off"

[bypass]
mark = "auto"

[dns]
upstreams = ["udp://8.8.8.8","udp://8.8.4.4"]
bootstrap = []
strategy = "failover"
fail_on = ["timeout","formerr","servfail","notimp","refused"]
client_subnet = false
randomize_case = false
attempt_timeout = "1s 200ms"
rounds = 2
deadline = "5s"

[names]
hosts = []
zones = []
special = true
ttl = "5m"

[cache]
enabled = true
size = "64MiB"
min_ttl = "0s"
max_ttl = "1day"
max_negative_ttl = "1h"
failure_ttl = "5s"
prefetch = true
serve_stale = true
stale_patience = "1s 800ms"
max_stale = "1day"

[kernel_cache]
entries = 16384

[tcp]
max_connections = 1024
idle_timeout = "10s"

[control]
socket = "/run/interceptor/control.sock"

[log]
filter = "info"
format = "text"

[[rule]]
destination = "10.30.30.30"
service = "dns"

[[rule]]
destination = "fd30:30:30::30"
service = "dns"
"#
    );
}

#[test]
fn every_key_can_be_set_in_the_file() {
    let config = Given::file(EVERY_KEY).load().unwrap();
    assert_eq!(config.interfaces, ["wg0", "wg1"]);
    assert_eq!(config.attach, AttachMode::Clsact);
    assert!(config.share);
    assert_eq!(config.addresses, [ip("10.9.9.9")]);
    assert_eq!(config.reader.mode, ReaderMode::AfXdp);
    assert_eq!(config.reader.device.as_deref(), Some("icept7"));
    assert!(!config.reader.routes);
    assert_eq!(config.reader.busy_poll, Duration::from_micros(50));
    assert_eq!(config.bypass.mark, Some(51820));
    assert_eq!(config.bypass.device.as_deref(), Some("eth0"));
    assert_eq!(config.dns.upstreams.len(), 2);
    assert_eq!(config.dns.bootstrap.len(), 2);
    assert_eq!(config.dns.attempt_timeout, Duration::from_millis(300));
    assert_eq!(config.dns.rounds, 3);
    assert_eq!(config.dns.deadline, Duration::from_millis(2500));
    assert_eq!(
        config.dns.cache,
        CacheConfig {
            enabled: false,
            size: 1536 << 10,
            min_ttl: 10,
            max_ttl: 7200,
            max_negative_ttl: 60,
            failure_ttl: 2,
            prefetch: false,
            serve_stale: false,
            stale_patience: Duration::from_millis(500),
            max_stale: 3 * 86_400,
        }
    );
    let shared = config.dns.shared_cache.as_ref().unwrap();
    let url = "valkeys://fleet@192.0.2.1:7000/3#valkey.example";
    assert_eq!(shared.store.to_string(), url);
    assert_eq!(shared.budget, Duration::from_millis(5));
    assert_eq!(shared.prefix, "fleet:");
    assert!(!shared.bypass);
    assert_eq!(config.names.hosts, [PathBuf::from("/etc/hosts")]);
    assert_eq!(config.names.zones, ["home.lan".parse().unwrap()]);
    assert!(!config.names.special);
    assert_eq!(config.names.ttl, 60);
    assert_eq!(config.kernel_cache, 4096);
    assert_eq!(config.tcp.max_connections, 2000);
    assert_eq!(config.tcp.idle_timeout, Duration::from_secs(30));
    assert_eq!(config.control, PathBuf::from("/tmp/control.sock"));
    assert_eq!(config.log.filter, "warn,interceptor::dns=debug");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.bpf_object, Some(PathBuf::from("/proc/self/exe")));
    assert_eq!(
        rules(&config),
        [
            "10.9.9.9 -> dns",
            "any udp port 53 -> dns",
            "10.30.0.0/16 icmp -> echo"
        ]
    );
}

#[test]
fn what_is_printed_gives_the_same_configuration_again() {
    for text in [
        "",
        EVERY_KEY,
        "[virtual]\naddresses = []\n[[rule]]\ndestination = \"10.0.0.1\"",
    ] {
        let config = Given::file(text).load().unwrap();
        let again = Given::file(&config.to_toml()).load().unwrap();
        assert_eq!(again, config);
    }
}

#[test]
fn the_files_of_a_shared_cache_are_read_and_named_again_and_its_password_is_not_printed() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let key = file("key", &"5a".repeat(32));
    let password = file("password", "hunter2\n");
    let text = format!(
        "[shared_cache]\nurl = \"redis://192.0.2.1\"\nkey_file = {key:?}\npassword_file = {password:?}"
    );
    let config = Given::file(&text).load().unwrap();
    let shared = config.dns.shared_cache.as_ref().unwrap();
    assert_eq!(shared.key.as_ref().map(|it| &it.path), Some(&key));
    assert_eq!(shared.password.as_ref().map(|it| &it.path), Some(&password));
    let again = Given::file(&config.to_toml()).load().unwrap();
    assert_eq!(again, config);
    let text = "[shared_cache]\nurl = \"redis://:hunter2@192.0.2.1\"";
    let config = Given::file(text).load().unwrap();
    let printed = format!("{}{}{config:?}", config.to_toml(), config.to_json());
    assert!(!printed.contains("hunter2"), "{printed}");
}

#[test]
fn json_has_the_shape_of_the_file() {
    let json = Given::nothing().load().unwrap().to_json();
    assert_eq!(json["dns"]["rounds"], 2);
    assert_eq!(json["reader"]["device"], serde_json::Value::Null);
    assert_eq!(json["rule"][0]["destination"], "10.30.30.30");
}

#[test]
fn every_key_can_be_set_in_the_environment() {
    let config = Given::nothing()
        .variable("INTERCEPTOR_TUNNEL_INTERFACES", "wg0, wg1")
        .variable("INTERCEPTOR_TUNNEL_ATTACH", "clsact")
        .variable("INTERCEPTOR_TUNNEL_SHARE", "true")
        .variable("INTERCEPTOR_VIRTUAL_ADDRESSES", "10.9.9.9")
        .variable("INTERCEPTOR_READER_KIND", "af-xdp")
        .variable("INTERCEPTOR_READER_DEVICE", "icept7")
        .variable("INTERCEPTOR_READER_ROUTES", "off")
        .variable("INTERCEPTOR_READER_BUSY_POLL", "50us")
        .variable("INTERCEPTOR_BYPASS_MARK", "0xca6c")
        .variable("INTERCEPTOR_BYPASS_DEVICE", "eth0")
        .variable(
            "INTERCEPTOR_DNS_UPSTREAMS",
            "udp://9.9.9.9,tcp://[2001:db8::53]:5353",
        )
        .variable(
            "INTERCEPTOR_DNS_BOOTSTRAP",
            "udp://9.9.9.10, tcp://[2001:db8::54]",
        )
        .variable("INTERCEPTOR_DNS_STRATEGY", "parallel")
        .variable("INTERCEPTOR_DNS_PARALLEL", "3")
        .variable("INTERCEPTOR_DNS_FAIL_ON", "timeout, servfail")
        .variable("INTERCEPTOR_DNS_CLIENT_SUBNET", "true")
        .variable("INTERCEPTOR_DNS_RANDOMIZE_CASE", "on")
        .variable("INTERCEPTOR_DNS_ATTEMPT_TIMEOUT", "300ms")
        .variable("INTERCEPTOR_DNS_ROUNDS", "3")
        .variable("INTERCEPTOR_DNS_DEADLINE", "2.5s")
        .variable("INTERCEPTOR_NAMES_HOSTS", "/etc/hosts")
        .variable("INTERCEPTOR_NAMES_ZONES", "home.lan")
        .variable("INTERCEPTOR_NAMES_SPECIAL", "off")
        .variable("INTERCEPTOR_NAMES_TTL", "1min")
        .variable("INTERCEPTOR_CACHE_ENABLED", "off")
        .variable("INTERCEPTOR_CACHE_SIZE", "1536KiB")
        .variable("INTERCEPTOR_CACHE_MIN_TTL", "10s")
        .variable("INTERCEPTOR_CACHE_MAX_TTL", "2h")
        .variable("INTERCEPTOR_CACHE_MAX_NEGATIVE_TTL", "1min")
        .variable("INTERCEPTOR_CACHE_FAILURE_TTL", "2s")
        .variable("INTERCEPTOR_CACHE_PREFETCH", "off")
        .variable("INTERCEPTOR_CACHE_SERVE_STALE", "off")
        .variable("INTERCEPTOR_CACHE_STALE_PATIENCE", "500ms")
        .variable("INTERCEPTOR_CACHE_MAX_STALE", "3days")
        .variable(
            "INTERCEPTOR_SHARED_CACHE_URL",
            "valkeys://fleet@192.0.2.1:7000/3#valkey.example",
        )
        .variable("INTERCEPTOR_SHARED_CACHE_BUDGET", "5ms")
        .variable("INTERCEPTOR_SHARED_CACHE_PREFIX", "fleet:")
        .variable("INTERCEPTOR_SHARED_CACHE_BYPASS", "off")
        .variable("INTERCEPTOR_KERNEL_CACHE_ENTRIES", "4096")
        .variable("INTERCEPTOR_TCP_MAX_CONNECTIONS", "2000")
        .variable("INTERCEPTOR_TCP_IDLE_TIMEOUT", "30s")
        .variable("INTERCEPTOR_CONTROL_SOCKET", "/tmp/control.sock")
        .variable("INTERCEPTOR_LOG_FILTER", "warn,interceptor::dns=debug")
        .variable("INTERCEPTOR_LOG_FORMAT", "json")
        .variable("INTERCEPTOR_KERNEL_OBJECT", "/proc/self/exe")
        .load()
        .unwrap();
    let mut from_file = Given::file(EVERY_KEY).load().unwrap();
    from_file.rules.truncate(1);
    from_file.names.records.clear();
    assert_eq!(config, from_file);
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let given =
        Given::file("[dns]\nrounds = 3\n[tcp]\nmax_connections = 3\n[log]\nfilter = \"error\"")
            .variable("INTERCEPTOR_DNS_ROUNDS", "4")
            .variable("INTERCEPTOR_TCP_MAX_CONNECTIONS", "4")
            .flag(Key::DnsRounds, "--rounds", "5");
    let config = given.load().unwrap();
    assert_eq!(config.dns.rounds, 5);
    assert_eq!(config.tcp.max_connections, 4);
    assert_eq!(config.log.filter, "error");
}

#[test]
fn a_list_replaces_the_list_below_it() {
    let config = Given::file("[tunnel]\ninterfaces = [\"wg0\", \"wg1\"]")
        .variable("INTERCEPTOR_TUNNEL_INTERFACES", "tun0")
        .load()
        .unwrap();
    assert_eq!(config.interfaces, ["tun0"]);
}

#[test]
fn records_are_read_with_their_values_and_printed_as_they_were_written() {
    let config = Given::file(EVERY_KEY).load().unwrap();
    let records = config.names.records.iter();
    let texts: Vec<_> = records
        .map(|it| format!("{} {:?} {} {}", it.name, it.ttl, it.rtype, it.text))
        .collect();
    assert_eq!(
        texts,
        [
            "nas.home.lan. Some(600) A 192.0.2.5",
            "nas.home.lan. Some(600) A 192.0.2.6",
            "home.lan. Some(30) TXT \"two words\" more",
            "*.dev.lan. None CNAME nas.home.lan"
        ]
    );
    assert!(!config.names.records[0].has_reverse);
}

#[test]
fn rules_by_flag_replace_those_of_the_file() {
    let mut given = Given::file("[virtual]\naddresses = []\n[[rule]]\ndestination = \"10.0.0.1\"");
    given
        .flags
        .set_item_flags(TableKind::Rule, "--rule", &["any port 53".to_owned()]);
    assert_eq!(rules(&given.load().unwrap()), ["any port 53 -> dns"]);
}

#[test]
fn a_configured_rule_for_a_virtual_address_takes_the_place_of_its_own() {
    let config = Given::file("[[rule]]\ndestination = \"10.30.30.30\"\nservice = \"echo\"")
        .load()
        .unwrap();
    assert_eq!(
        rules(&config),
        ["fd30:30:30::30 -> dns", "10.30.30.30 -> echo"]
    );
}

#[test]
fn an_empty_list_in_the_environment_is_an_empty_list() {
    let config = Given::file("[[rule]]\ndestination = \"any\"\nport = 53")
        .variable("INTERCEPTOR_VIRTUAL_ADDRESSES", "")
        .load()
        .unwrap();
    assert_eq!(rules(&config), ["any port 53 -> dns"]);
}

#[test]
fn a_mark_is_written_in_either_base_or_left_to_the_tunnel() {
    for (text, mark) in [
        ("51820", Some(51820)),
        ("0xca6c", Some(51820)),
        ("\"0xCA6C\"", Some(51820)),
        ("51_820", Some(51820)),
        ("\"auto\"", None),
        ("0", Some(0)),
    ] {
        let given = Given::file(&format!("[bypass]\nmark = {text}"));
        assert_eq!(given.load().unwrap().bypass.mark, mark, "{text}");
    }
}

#[test]
fn a_word_alone_in_a_log_filter_is_a_level() {
    let load = |filter| {
        Given::nothing()
            .variable("INTERCEPTOR_LOG_FILTER", filter)
            .load()
    };
    for filter in [
        "off",
        "INFO",
        "warn,interceptor::dns=debug",
        "warn,interceptor::dns",
        "interceptor[query]=trace",
    ] {
        assert!(load(filter).is_ok(), "{filter}");
    }
    for filter in [
        "inof",
        "notalevel",
        "warn,debgu",
        "interceptor=loud",
        "",
        "5",
    ] {
        let error = load(filter).unwrap_err().to_string();
        assert!(error.contains("is no log filter"), "{filter}: {error}");
    }
}

#[test]
fn an_upstream_may_be_intercepted_as_long_as_our_own_queries_bypass() {
    let text = "[[rule]]\ndestination = \"any\"\nport = 53";
    assert!(Given::file(text).load().is_ok());
    let text = "[bypass]\nmark = 0\ndevice = \"eth0\"\n[[rule]]\ndestination = \"8.8.8.8\"";
    assert!(Given::file(text).load().is_ok());
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_line_and_column() {
    for (text, message) in WRONG_FILES {
        assert_eq!(
            Given::file(text).error(),
            format!("FILE:{message}"),
            "{text}"
        );
    }
}

const WRONG_FILES: &[(&str, &str)] = &[
    (
        "[dns]\nrounds = \n",
        "2:10: not valid TOML: string values must be quoted, expected literal string",
    ),
    (
        "[dns]\nrounds = 1\nrounds = 2",
        "3:1: not valid TOML: duplicate key",
    ),
    ("[dsn]", "1:2: unknown section `dsn`; did you mean `dns`?"),
    (
        "attempts = 2",
        "1:1: unknown section `attempts`; known here: tunnel, virtual, reader, bypass, dns, names, cache, shared_cache, \
         kernel_cache, tcp, control, log, kernel, group, route, record, rule, listen",
    ),
    (
        "dns = 3",
        "1:1: dns: expected a section, found an integer; write [dns] on a line of its own",
    ),
    (
        "[dns]\n  upstream = []",
        "2:3: unknown key `dns.upstream`; did you mean `dns.upstreams`?",
    ),
    (
        "[dns]\nsocket = \"x\"",
        "2:1: unknown key `dns.socket`; known here: upstreams, bootstrap, strategy, parallel, fail_on, client_subnet, randomize_case, attempt_timeout, rounds, deadline",
    ),
    (
        "[tunnel]\ninterfaces = \"wg0\"",
        "2:14: tunnel.interfaces: expected a list, found a string; put the value in brackets",
    ),
    (
        "[tunnel]\ninterfaces = [\"wg0\", 1]",
        "2:22: tunnel.interfaces: expected an interface name in quotes such as \"wg0\", found an integer",
    ),
    (
        "[tunnel]\ninterfaces = [\"wg0\", \"wg0\"]",
        "2:22: tunnel.interfaces: `wg0` is there twice; remove one",
    ),
    (
        "[tunnel]\ninterfaces = [\"a/b\"]",
        "2:15: tunnel.interfaces: `a/b` is no interface name; it has 1 to 15 bytes and neither spaces, `/` nor `:`",
    ),
    (
        "[tunnel]\nattach = \"xdp\"",
        "2:10: tunnel.attach: `xdp` is none of auto, tcx, clsact",
    ),
    (
        "[tunnel]\nshare = \"yes\"",
        "2:9: tunnel.share: expected true or false, found a string",
    ),
    (
        "[virtual]\naddresses = [\"10.30.30\"]",
        "2:14: virtual.addresses: `10.30.30` is no IP address; write one such as 10.30.30.30 or fd30:30:30::30",
    ),
    (
        "[virtual]\naddresses = [\"0.0.0.0\"]",
        "2:14: virtual.addresses: 0.0.0.0 is the unspecified address; a virtual address is one that no host owns, such \
         as 10.30.30.30",
    ),
    (
        "[virtual]\naddresses = [\"ff02::1\"]",
        "2:14: virtual.addresses: ff02::1 is a multicast address; a virtual address is one that no host owns, such as \
         10.30.30.30",
    ),
    (
        "[virtual]\naddresses = [\"127.0.0.53\"]",
        "2:14: virtual.addresses: 127.0.0.53 is a loopback address, which never leaves the host; a virtual address is \
         one that no host owns, such as 10.30.30.30",
    ),
    (
        "[virtual]\naddresses = [\"255.255.255.255\"]",
        "2:14: virtual.addresses: 255.255.255.255 is the broadcast address; a virtual address is one that no host \
         owns, such as 10.30.30.30",
    ),
    (
        "[virtual]\naddresses = [\"10.9.9.9\", \"10.9.9.9\"]",
        "2:26: virtual.addresses: `10.9.9.9` is there twice; remove one",
    ),
    (
        "[virtual]\naddresses = []",
        "2:13: virtual.addresses: there is neither a virtual address nor a rule, so nothing would be intercepted; give \
         one with --address or --rule",
    ),
    (
        "[tunnel]\ninterfaces = [\"wg0\"]\n[reader]\ndevice = \"wg0\"",
        "4:10: reader.device: `wg0` is also a tunnel (tunnel.interfaces, FILE:2:15); the reader needs a device of its \
         own, such as icept0",
    ),
    (
        "[tunnel]\ninterfaces = [\"wg0\"]\n[bypass]\ndevice = \"wg0\"",
        "4:10: bypass.device: `wg0` is also a tunnel (tunnel.interfaces, FILE:2:15), which the bypass is to avoid; \
         name the device that leads to the upstreams, such as eth0",
    ),
    (
        "[reader]\nroutes = true",
        "2:10: reader.routes: expected one of auto, off in quotes, found a boolean",
    ),
    (
        "[bypass]\nmark = 4294967296",
        "2:8: bypass.mark: 4294967296 is out of range; a mark is `auto` or a number of 32 bits such as 51820 or \
         \"0xca6c\"; 0 sets none",
    ),
    (
        "[bypass]\nmark = \"none\"",
        "2:8: bypass.mark: `none` is no mark; a mark is `auto` or a number of 32 bits such as 51820 or \"0xca6c\"; 0 \
         sets none",
    ),
    (
        "[dns]\nupstreams = []",
        "2:13: dns.upstreams: there must be at least one upstream, such as udp://8.8.8.8",
    ),
    (
        "[dns]\nupstreams = [\"udp://8.8.8.8\", \"udp://8.8.8.8\"]",
        "2:31: dns.upstreams: `udp://8.8.8.8` is there twice; remove one",
    ),
    (
        "[dns]\nupstreams = [\"tcp://10.30.30.30\"]",
        "2:14: dns.upstreams: tcp://10.30.30.30 is a virtual address (virtual.addresses, default), where no resolver \
         is; name one outside, such as udp://8.8.8.8",
    ),
    (
        "[bypass]\nmark = 0\n[dns]\nupstreams = [\"udp://9.9.9.9\"]\n[[rule]]\ndestination = \"any\"\nport = 53",
        "4:14: dns.upstreams: udp://9.9.9.9 is taken by rule `any port 53 -> dns` (FILE:5:1) and bypass.mark is 0, so \
         queries would come back to us; set a mark or bypass.device",
    ),
    (
        "[dns]\ndeadline = 5",
        "2:12: dns.deadline: expected a duration in quotes such as \"1.2s\" or \"800ms\", found an integer",
    ),
    (
        "[dns]\ndeadline = \"fast\"",
        "2:12: dns.deadline: `fast` is no duration; write one such as 1.2s, 800ms or 1min",
    ),
    (
        "[dns]\ndeadline = \"0s\"",
        "2:12: dns.deadline: 0s is out of range; it can be 10ms to 1m",
    ),
    (
        "[dns]\nattempt_timeout = \"6s\"",
        "2:19: dns.attempt_timeout: 6s is longer than dns.deadline (5s, default), which covers all attempts; shorten \
         the one or lengthen the other",
    ),
    (
        "[dns]\ndeadline = \"1s\"",
        "2:12: dns.deadline: 1s is shorter than dns.attempt_timeout (1s 200ms, default), one of the attempts that it \
         covers; lengthen the one or shorten the other",
    ),
    (
        "[dns]\nrounds = 0",
        "2:10: dns.rounds: 0 is out of range; it can be 1 to 10",
    ),
    (
        "[cache]\nsize = \"0MiB\"",
        "2:8: cache.size: 0MiB is out of range; it can be 1 to 1048576 MiB",
    ),
    (
        "[cache]\nsize = \"99999999999999999999GiB\"",
        "2:8: cache.size: `99999999999999999999GiB` is no amount of memory; write one such as 64MiB or 2GB",
    ),
    (
        "[cache]\nsize = 64",
        "2:8: cache.size: expected an amount of memory in quotes such as \"64MiB\", found an integer",
    ),
    (
        "[cache]\nsize = \"64\"",
        "2:8: cache.size: `64` is no amount of memory; write one such as 64MiB or 2GB",
    ),
    (
        "[cache]\nmax_ttl = \"500ms\"",
        "2:11: cache.max_ttl: 500ms is out of range; it can be 1s to 7days",
    ),
    (
        "[cache]\nmax_ttl = \"1500ms\"",
        "2:11: cache.max_ttl: 1s 500ms is no whole number of seconds, as TTLs are",
    ),
    (
        "[cache]\nfailure_ttl = \"6min\"",
        "2:15: cache.failure_ttl: 6min is out of range; it can be 1s to 5m",
    ),
    (
        "[cache]\nmin_ttl = \"1min\"\nmax_ttl = \"30s\"",
        "2:11: cache.min_ttl: the least TTL is greater than the greatest (cache.max_ttl); lower the one or raise the \
         other",
    ),
    (
        "[kernel_cache]\nentries = 0",
        "2:11: kernel_cache.entries: 0 is out of range; it can be `on`, `off` or 16 to 1048576 answers",
    ),
    (
        "[kernel_cache]\nentries = 4294967295",
        "2:11: kernel_cache.entries: 4294967295 is out of range; it can be `on`, `off` or 16 to 1048576 answers",
    ),
    (
        "[kernel_cache]\nentries = -1",
        "2:11: kernel_cache.entries: -1 is out of range; it can be `on`, `off` or 16 to 1048576 answers",
    ),
    (
        "[kernel_cache]\nentries = 99999999999",
        "2:11: kernel_cache.entries: 99999999999 is out of range; it can be `on`, `off` or 16 to 1048576 answers",
    ),
    (
        "[kernel_cache]\nentries = \"many\"",
        "2:11: kernel_cache.entries: `many` is neither `on`, `off` nor a number of answers",
    ),
    (
        "[tcp]\nmax_connections = 99999999999",
        "2:19: tcp.max_connections: 99999999999 is out of range; it can be 1 to 100000",
    ),
    (
        "[tcp]\nmax_connections = 1.5",
        "2:19: tcp.max_connections: expected a number, found a float",
    ),
    (
        "[tcp]\nidle_timeout = \"2d\"",
        "2:16: tcp.idle_timeout: 2d is out of range; it can be 10ms to 1day",
    ),
    (
        "[control]\nsocket = \"\"",
        "2:10: control.socket: the path is empty",
    ),
    (
        "[log]\nfilter = \"interceptor=loud\"",
        "2:10: log.filter: `interceptor=loud` is no log filter; write a level (error, warn, info, debug, trace) or a \
         filter such as `warn,interceptor::dns=debug`",
    ),
    (
        "[log]\nfilter = \"inof\"",
        "2:10: log.filter: `inof` is no log filter; write a level (error, warn, info, debug, trace) or a filter such as \
         `warn,interceptor::dns=debug`",
    ),
    (
        "[log]\nformat = \"xml\"",
        "2:10: log.format: `xml` is none of text, json",
    ),
    (
        "[kernel]\nobject = \"/nonexistent.o\"",
        "2:10: kernel.object: cannot read /nonexistent.o: No such file or directory (os error 2)",
    ),
    (
        "[kernel]\nobject = \"/proc\"",
        "2:10: kernel.object: /proc is no file",
    ),
    (
        "[rule]\ndestination = \"10.0.0.1\"",
        "1:1: rule: expected a table in double brackets, found a table; write [[rule]]",
    ),
    (
        "[[rule]]\nport = 53",
        "1:1: rule: `destination` is missing; write an address, a prefix or \"any\"",
    ),
    (
        "[[rule]]\ndestnation = \"10.0.0.1\"",
        "2:1: unknown key `rule.destnation`; did you mean `rule.destination`?",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1/8\"",
        "2:15: rule.destination: `10.0.0.1/8` has bits set beyond its length; did you mean 10.0.0.0/8?",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\nprotocol = \"sctp\"",
        "3:12: rule.protocol: `sctp` is no protocol; protocols are udp, tcp and icmp",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\nport = 70000",
        "3:8: rule.port: 70000 is not a port; ports are 1 to 65535",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\nport = \"53\"",
        "3:8: rule.port: expected a number, found a string",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\nservice = \"dsn\"",
        "3:11: rule.service: `dsn` is no service; services are dns and echo",
    ),
    (
        "[[rule]]\ndestination = \"any\"",
        "1:1: rule: a rule for any destination needs a port: without one it would take all of the tunnel's traffic",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\n[[rule]]\ndestination = \"10.0.0.1\"\nservice = \"echo\"",
        "3:1: rule: rules `10.0.0.1 -> dns` and `10.0.0.1 -> echo` match the same packets but name different services; \
         remove one (the first is from FILE:1:1)",
    ),
    (
        "[[rule]]\ndestination = \"10.0.0.1\"\n[[rule]]\ndestination = \"10.0.0.1\"",
        "3:1: rule: rule `10.0.0.1 -> dns` is there already (the first is from FILE:1:1)",
    ),
    (
        "[[record]]\nname = \"a..b\"\ntype = \"A\"\nvalue = \"192.0.2.1\"",
        "2:8: record.name: `a..b` is no domain name: labels have at most 63 octets, names 255 (RFC 1035 §3.1)",
    ),
    (
        "[[record]]\nname = \"a.lan\"\nvalue = \"192.0.2.1\"",
        "1:1: record: `type` is missing; write one such as \"A\" or \"CNAME\"",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"SOA\"\nvalue = \"x\"",
        "3:8: record.type: `SOA` is no type that a record can have here; types are A, AAAA, CAA, CNAME, HTTPS, MX, \
         NAPTR, PTR, SRV, SSHFP, SVCB, TXT",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"",
        "1:1: record: `value` is missing; write the record's data, such as \"192.168.1.10\", or a list",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = []",
        "1:1: record: `value` is empty; write the record's data, such as \"192.168.1.10\", or a list",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = [\"192.0.2.1\", \"192.0.2.256\"]",
        "4:23: record.value: `192.0.2.256` cannot be the data of a record of type A: it is no IPv4 address",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = \"192.0.2.1\"\nttl = -1",
        "5:7: record.ttl: -1 is out of range; it can be 0 to 604800",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = \"192.0.2.1\"\nvalues = []",
        "5:1: unknown key `record.values`; did you mean `record.value`?",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = \"192.0.2.1\"\n\
         [[record]]\nname = \"A.lan.\"\ntype = \"CNAME\"\nvalue = \"b.lan\"",
        "8:9: record: a.lan. has a CNAME record beside another; an alias has no records of its own (RFC 1034 §3.6.2) \
         (the first is from FILE:4:9)",
    ),
    (
        "[[record]]\nname = \"a.lan\"\ntype = \"A\"\nvalue = [\"192.0.2.1\", \"192.0.2.1\"]",
        "4:23: record: a.lan. has this record of type A twice; remove one (the first is from FILE:4:10)",
    ),
    (
        "[names]\nzones = [\"lan\"]\n[[record]]\nname = \"lan\"\ntype = \"CNAME\"\nvalue = \"b.lan\"",
        "2:10: names.zones: lan. is an alias (FILE:6:9), which a zone cannot be; leave out the one or the other",
    ),
    (
        "[names]\nzones = [\"*.lan\"]",
        "2:10: names.zones: *.lan. is a wildcard, which no zone can be",
    ),
    (
        "[names]\nhosts = [\"/nowhere/hosts\"]",
        "2:10: names.hosts: cannot read the hosts file /nowhere/hosts: No such file or directory (os error 2)",
    ),
    (
        "[names]\nhosts = [\"/proc/self/status\"]",
        "2:10: names.hosts: /proc/self/status:1: `Name:` is no address; a line is an address and names",
    ),
];

#[test]
fn what_is_wrong_in_the_environment_is_named_with_its_variable() {
    for (name, value, message) in [
        (
            "INTERCEPTOR_DNS_DEADLINE",
            "fast",
            "INTERCEPTOR_DNS_DEADLINE: dns.deadline: `fast` is no duration; write one such as 1.2s, 800ms or 1min",
        ),
        (
            "INTERCEPTOR_TUNNEL_SHARE",
            "maybe",
            "INTERCEPTOR_TUNNEL_SHARE: tunnel.share: `maybe` is neither true nor false",
        ),
        (
            "INTERCEPTOR_DNS_ROUNDS",
            "two",
            "INTERCEPTOR_DNS_ROUNDS: dns.rounds: `two` is no number",
        ),
        (
            "INTERCEPTOR_DNS_UPSTREAM",
            "udp://9.9.9.9",
            "unknown environment variable INTERCEPTOR_DNS_UPSTREAM; did you mean `INTERCEPTOR_DNS_UPSTREAMS`?",
        ),
    ] {
        assert_eq!(Given::nothing().variable(name, value).error(), message);
    }
}

#[test]
fn variables_of_tests_and_of_others_mean_nothing() {
    let given = Given::nothing()
        .variable("INTERCEPTOR_BIN", "/bin/true")
        .variable("INTERCEPTOR_CONFIG", "")
        .variable("PATH", "/bin")
        .variable("INTERCEPTORS", "7");
    assert!(given.load().is_ok());
}

#[test]
fn what_is_wrong_in_a_flag_is_named_with_the_flag() {
    let given = Given::nothing().flag(Key::BypassMark, "--mark", "blue");
    assert_eq!(
        given.error(),
        "--mark: bypass.mark: `blue` is no mark; a mark is `auto` or a number of 32 bits such as 51820 or \"0xca6c\"; \
         0 sets none"
    );
    let mut given = Given::nothing();
    given
        .flags
        .set_item_flags(TableKind::Rule, "--rule", &["any udp 53".to_owned()]);
    assert_eq!(
        given.error(),
        "--rule: rule: `any udp 53` is no rule; write one such as `10.30.30.30`, `any udp port 53 -> dns` or \
         `10.30.0.0/16 icmp -> echo`"
    );
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let message = "cannot read the configuration file /nonexistent.toml: no such file; name another with --config or \
                   INTERCEPTOR_CONFIG";
    let mut given = Given::nothing();
    given.named = Some(PathBuf::from("/nonexistent.toml"));
    assert_eq!(given.load().unwrap_err().to_string(), message);
    let given = Given::nothing().variable("INTERCEPTOR_CONFIG", "/nonexistent.toml");
    assert_eq!(given.error(), message);
}

#[test]
fn the_default_file_may_be_missing_and_is_read_when_it_is_there() {
    let mut given = Given::file("[dns]\nrounds = 7");
    let path = given.named.take().unwrap();
    assert_eq!(given.load().unwrap().dns.rounds, 2);
    given.default_file = path;
    assert_eq!(given.load().unwrap().dns.rounds, 7);
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let given = Given::file("");
    fs::write(given.named.as_ref().unwrap(), [0xff, 0xfe]).unwrap();
    assert_eq!(
        given.error(),
        "cannot read the configuration file FILE: it is not UTF-8 text"
    );
}

#[test]
fn a_client_finds_the_socket_without_looking_further_than_it_must() {
    let given = Given::file("[control]\nsocket = \"/tmp/file.sock\"\n[dns]\nrounds = 99");
    assert_eq!(given.socket(), "/tmp/file.sock");
    let given =
        Given::file("no TOML at all").variable("INTERCEPTOR_CONTROL_SOCKET", "/tmp/env.sock");
    assert_eq!(given.socket(), "/tmp/env.sock");
    let given = given.variable("INTERCEPTOR_WRONG", "1").flag(
        Key::ControlSocket,
        "--control",
        "/tmp/flag.sock",
    );
    assert_eq!(given.socket(), "/tmp/flag.sock");
    assert_eq!(Given::nothing().socket(), DEFAULT_SOCKET);
}

#[test]
fn a_socket_whose_path_is_too_long_is_refused() {
    let path = format!("/tmp/{}", "x".repeat(103));
    let given = Given::nothing().flag(Key::ControlSocket, "--control", &path);
    assert_eq!(
        given.error(),
        format!(
            "--control: control.socket: {path} is too long for a socket: 108 bytes of at most 107"
        )
    );
}

const EVERY_KEY: &str = r#"
[tunnel]
interfaces = ["wg0", "wg1"]
attach = "clsact"
share = true

[virtual]
addresses = ["10.9.9.9"]

[reader]
kind = "af-xdp"
device = "icept7"
routes = "off"
busy_poll = "50us"

[bypass]
mark = "0xca6c"
device = "eth0"

[dns]
upstreams = ["udp://9.9.9.9", "tcp://[2001:db8::53]:5353"]
bootstrap = ["udp://9.9.9.10", "tcp://[2001:db8::54]"]
strategy = "parallel"
parallel = 3
fail_on = ["timeout", "servfail"]
client_subnet = true
randomize_case = true
attempt_timeout = "300ms"
rounds = 3
deadline = "2.5s"

[names]
hosts = ["/etc/hosts"]
zones = ["home.lan"]
special = false
ttl = "1min"

[cache]
enabled = false
size = "1536KiB"
min_ttl = "10s"
max_ttl = "2h"
max_negative_ttl = "1min"
failure_ttl = "2s"
prefetch = false
serve_stale = false
stale_patience = "500ms"
max_stale = "3days"

[shared_cache]
url = "valkeys://fleet@192.0.2.1:7000/3#valkey.example"
budget = "5ms"
prefix = "fleet:"
bypass = false

[kernel_cache]
entries = 4096

[tcp]
max_connections = 2000
idle_timeout = "30s"

[control]
socket = "/tmp/control.sock"

[log]
filter = "warn,interceptor::dns=debug"
format = "json"

[kernel]
object = "/proc/self/exe"

[[record]]
name = "nas.home.lan"
type = "A"
value = ["192.0.2.5", "192.0.2.6"]
ttl = "10min"
ptr = false

[[record]]
name = "home.lan"
type = "txt"
value = '"two words" more'
ttl = 30

[[record]]
name = "*.dev.lan"
type = "CNAME"
value = "nas.home.lan"

[[rule]]
destination = "any"
protocol = "udp"
port = 53

[[rule]]
destination = "10.30.0.0/16"
protocol = "icmp"
service = "echo"
"#;

#[test]
fn listeners_alone_intercept_nothing() {
    let config = Given::file("[[listen]]\naddress = \"127.0.0.1:5353\"")
        .load()
        .unwrap();
    assert!(!config.intercepts());
    assert!(config.addresses.is_empty());
    assert!(config.is_control_optional);
    let again = Given::file(&config.to_toml()).load().unwrap();
    assert_eq!(again.to_toml(), config.to_toml());
}

#[test]
fn inherited_sockets_alone_intercept_nothing_either() {
    let mut given = Given::nothing();
    given.inherits_sockets = true;
    assert!(!given.load().unwrap().intercepts());
}

#[test]
fn listeners_beside_something_to_intercept_leave_it_as_it_is() {
    let listen = "\n[[listen]]\naddress = \"127.0.0.1:5353\"";
    for (text, expected) in [
        ("[tunnel]\ninterfaces = [\"wg0\"]", 2),
        ("[virtual]\naddresses = [\"10.9.9.9\"]", 1),
        ("[[rule]]\ndestination = \"10.9.9.9\"", 3),
        ("[virtual]\naddresses = []", 0),
    ] {
        let config = Given::file(&format!("{text}{listen}")).load().unwrap();
        assert_eq!(config.rules.len(), expected, "{text}");
        assert_eq!(config.listens.len(), 1);
    }
}

#[test]
fn a_listener_is_shown_as_the_table_that_says_it() {
    let text = "[[listen]]\naddress = \"0.0.0.0\"\nprotocols = [\"udp\"]\nallow = [\"198.51.100.0/24\", \"10.0.0.1\"]";
    let config = Given::file(text).load().unwrap();
    assert!(config.to_toml().ends_with(
        r#"
[[listen]]
address = "0.0.0.0:53"
protocols = ["udp"]
allow = ["198.51.100.0/24","10.0.0.1/32"]
reuse_port = false
"#
    ));
}

#[test]
fn what_is_wrong_with_a_listener_is_told_with_its_place() {
    for (fields, told) in [
        (
            "",
            "FILE:1:1: listen: `address` is missing; write one such as 127.0.0.1:53",
        ),
        (
            "address = 53",
            "FILE:2:11: listen.address: expected an address in quotes, found an integer",
        ),
        (
            "adress = \"::1\"",
            "FILE:2:1: unknown key `listen.adress`; did you mean `listen.address`?",
        ),
        (
            "address = \"::1\"\nprotocols = [\"tls\"]",
            "FILE:3:14: listen.protocols: `tls` is neither udp nor tcp; for TLS leave out `protocols`",
        ),
        (
            "address = \"::1\"\nprotocols = []",
            "FILE:1:1: listen: `protocols` names udp, tcp or both",
        ),
        (
            "address = \"::1\"\nprotocols = [\"udp\", \"udp\"]",
            "FILE:1:1: listen: `protocols` names udp, tcp or both, each once",
        ),
        (
            "address = \"::1\"\nallow = []",
            "FILE:1:1: listen: `allow` is empty",
        ),
        (
            "address = \"::1\"\nallow = [\"any\", \"lan\"]",
            "FILE:3:17: listen.allow: `lan` is no network",
        ),
        (
            "address = \"::1\"\ncertificate = \"/nonexistent\"\nkey = \"/nonexistent\"",
            "FILE:3:15: listen.certificate: cannot read /nonexistent",
        ),
        (
            "address = \"::1\"\ncertificate = \"/proc/self/status\"",
            "FILE:1:1: listen: a certificate takes its key",
        ),
        (
            "address = \"::1\"\ncertificate = \"/proc/self/status\"\nkey = \"/proc/self/status\"",
            "FILE:1:1: listen: the server certificate /proc/self/status has no certificate in PEM form",
        ),
    ] {
        let error = Given::file(&format!("[[listen]]\n{fields}")).error();
        assert!(error.starts_with(told), "{fields}: {error}");
    }
}

#[test]
fn a_place_is_listened_at_once() {
    let listen = "[[listen]]\naddress = \"127.0.0.1:53\"\n";
    assert_eq!(
        Given::file(&format!("{listen}{listen}")).error(),
        "FILE:3:1: listen: udp://127.0.0.1:53 is there twice (first at FILE:1:1); remove one"
    );
}

#[test]
fn a_named_upstream_needs_an_address_or_somebody_to_resolve_it() {
    let bootstrap = "[dns]\nbootstrap = [\"udp://192.0.2.1\"]\n";
    for (text, named_at) in [
        (
            "[dns]\nupstreams = [\"tls://dns.example\"]",
            "2:14: dns.upstreams",
        ),
        (
            "[[group]]\nname = \"corp\"\nupstreams = [\"quic://dns.example\"]",
            "3:14: group.upstreams",
        ),
        (
            "[[route]]\ndomains = [\"corp.example\"]\nupstreams = [\"h3://dns.example\"]",
            "3:14: route.upstreams",
        ),
    ] {
        let error = Given::file(text).load().unwrap_err().to_string();
        for part in [named_at, "?bootstrap=192.0.2.1", "dns.bootstrap"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains('\n'), "{error}");
        let text = format!("{bootstrap}{}", text.trim_start_matches("[dns]\n"));
        let config = Given::file(&text).load().unwrap();
        assert_eq!(config.dns.bootstrap.len(), 1);
    }
}

#[test]
fn those_who_resolve_names_must_be_plain_and_not_ourselves() {
    for (bootstrap, rest, problem) in [
        ("tls://192.0.2.1", "", "is encrypted"),
        ("udp://dns.example", "", "upstreams are IP addresses here"),
        ("udp://10.30.30.30", "", "is a virtual address"),
        (
            "tcp://192.0.2.1",
            "[[listen]]\naddress = \"192.0.2.1\"\n[tunnel]\ninterfaces = [\"wg0\"]",
            "is where this daemon itself listens",
        ),
        (
            "udp://192.0.2.1",
            "[bypass]\nmark = 0\n[[rule]]\ndestination = \"any\"\nport = 53",
            "bypass.mark is 0",
        ),
    ] {
        let text = format!(
            "[dns]\nupstreams = [\"udp://192.0.2.9:54\"]\nbootstrap = [\"{bootstrap}\"]\n{rest}"
        );
        let error = Given::file(&text).load().unwrap_err().to_string();
        assert!(error.contains(":3:14: dns.bootstrap: "), "{error}");
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn resolvers_of_names_are_asked_by_the_way_of_the_upstreams_that_have_them() {
    let text = "[dns]\nbootstrap = [\"udp://192.0.2.1\"]\n[[route]]\ndomains = [\"corp.example\"]\n\
                upstreams = [\"tls://dns.corp.example\"]\nvia = \"tunnel\"";
    let ways = Given::file(text).load().unwrap().dns.ways();
    let resolver = "udp://192.0.2.1".parse().unwrap();
    assert!(ways.contains(&(resolver, Via::Tunnel)), "{ways:?}");
    assert_eq!(ways.len(), 4);
}

#[test]
fn an_upstream_that_is_a_listener_is_a_loop() {
    for (listen, upstream) in [
        ("127.0.0.1:53", "udp://127.0.0.1"),
        ("0.0.0.0:53", "tcp://127.0.0.53"),
        ("192.0.2.1:5353", "udp://192.0.2.1:5353"),
    ] {
        let error = Given::file(&format!(
            "[dns]\nupstreams = [\"{upstream}\"]\n[[listen]]\naddress = \"{listen}\""
        ))
        .error();
        assert!(
            error.contains("where this daemon itself listens"),
            "{error}"
        );
    }
    Given::file("[dns]\nupstreams = [\"udp://127.0.0.1:54\"]\n[[listen]]\naddress = \"0.0.0.0\"")
        .load()
        .unwrap();
}

#[test]
fn the_environment_of_a_simple_proxy_makes_one() {
    let config = Given::nothing()
        .variable("BIND_ADDRESS", "127.0.0.1")
        .variable("BIND_PORT", "5353")
        .variable("PROTO", "TCP")
        .variable("DOT_ADDRESS", "8.8.8.8#dns.google")
        .variable("DOT_PORT", "8853")
        .variable("LOG_LEVEL", "WARNING")
        .load()
        .unwrap();
    assert!(!config.intercepts());
    assert_eq!(config.listens[0].address.to_string(), "127.0.0.1:5353");
    let places: Vec<String> = config.listens[0]
        .places()
        .map(|it| it.to_string())
        .collect();
    assert_eq!(places, ["tcp://127.0.0.1:5353"]);
    assert_eq!(
        config.dns.upstreams[0].to_string(),
        "tls://8.8.8.8:8853#dns.google"
    );
    assert_eq!(config.log.filter, "warn");
}

#[test]
fn a_simple_proxys_names_have_its_defaults() {
    for (name, value) in [
        ("BIND_PORT", "53"),
        ("DOT_ADDRESS", "1.1.1.1"),
        ("DOT_PORT", "853"),
    ] {
        let config = Given::nothing().variable(name, value).load().unwrap();
        let places: Vec<String> = config.listens[0]
            .places()
            .map(|it| it.to_string())
            .collect();
        assert_eq!(places, ["udp://0.0.0.0:53", "tcp://0.0.0.0:53"], "{name}");
        let upstreams: Vec<String> = config
            .dns
            .upstreams
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(upstreams.len(), 1, "{name}");
        assert!(upstreams[0].starts_with("tls://1.1.1.1"), "{upstreams:?}");
    }
}

#[test]
fn a_simple_proxys_names_give_way_to_ours_and_count_only_where_nothing_else_says_where() {
    let config = Given::nothing()
        .variable("DOT_ADDRESS", "8.8.8.8")
        .variable("LOG_LEVEL", "debug")
        .variable("INTERCEPTOR_DNS_UPSTREAMS", "udp://9.9.9.9")
        .variable("INTERCEPTOR_LOG_FILTER", "error")
        .load()
        .unwrap();
    assert_eq!(config.dns.upstreams[0].to_string(), "udp://9.9.9.9");
    assert_eq!(config.log.filter, "error");

    for text in [
        "[tunnel]\ninterfaces = [\"wg0\"]",
        "[virtual]\naddresses = [\"10.9.9.9\"]",
        "[[rule]]\ndestination = \"10.9.9.9\"",
    ] {
        let config = Given::file(text)
            .variable("BIND_ADDRESS", "not even an address")
            .load()
            .unwrap();
        assert!(config.listens.is_empty(), "{text}");
    }
    let config = Given::nothing()
        .variable("LOG_LEVEL", "verbose")
        .variable("PROTO", "https")
        .variable("BIND_ADDRESS", "")
        .load()
        .unwrap();
    assert!(config.intercepts());
}

#[test]
fn what_is_wrong_with_a_simple_proxys_name_is_told_with_the_name() {
    for (name, value, told) in [
        (
            "BIND_ADDRESS",
            "eth0",
            "BIND_ADDRESS: listen.address: `eth0` is no address to listen at",
        ),
        (
            "BIND_PORT",
            "domain",
            "BIND_PORT: listen.address: `domain` is no port; ports are 1 to 65535",
        ),
        (
            "BIND_PORT",
            "0",
            "BIND_PORT: listen.address: `0` is no port",
        ),
        (
            "PROTO",
            "sctp",
            "PROTO: listen.protocols: `sctp` is none of udp, tcp and both",
        ),
        (
            "DOT_ADDRESS",
            "dns.google",
            "DOT_ADDRESS: dns.upstreams: `dns.google` is no address of a resolver",
        ),
        (
            "DOT_ADDRESS",
            "8.8.8.8?pin=x",
            "DOT_ADDRESS: dns.upstreams: ",
        ),
        (
            "DOT_PORT",
            "70000",
            "DOT_PORT: dns.upstreams: `70000` is no port",
        ),
        (
            "LOG_LEVEL",
            "loud",
            "LOG_LEVEL: log.filter: `loud` is no log filter",
        ),
    ] {
        // The first of several values counts, and one of the addresses and ports has to be there.
        let given = Given::nothing().variable(name, value);
        let error = given.variable("DOT_PORT", "853").error();
        assert!(error.starts_with(told), "{error}");
    }
}

/// Sources, some of them given.
#[test]
fn groups_and_routes_are_read_and_written_out_again() {
    let text = r#"[[group]]
name = "corp"
upstreams = ["udp://10.0.0.53", "tcp://10.0.1.53"]
strategy = "parallel"
parallel = 3
fail_on = ["servfail"]

[[group]]
name = "fast"
upstreams = ["udp://192.0.2.1"]
strategy = "fastest"

[[route]]
domains = ["Corp.Example.", "10.in-addr.arpa"]
group = "corp"
via = "tunnel"

[[route]]
domains = ["www.corp.example"]
group = "default"

[[route]]
domains = ["lab.example"]
upstreams = ["udp://192.0.2.2"]
via = "wg1"
"#;
    let config = Given::file(text).load().unwrap();
    let dns = &config.dns;
    assert_eq!(dns.groups[0].strategy, Strategy::Parallel(3));
    assert_eq!(dns.groups[1].fail_on, FailOn::default());
    assert_eq!(dns.routes[0].via, Via::Tunnel);
    assert_eq!(dns.routes[0].domains[0].to_string(), "corp.example");
    assert_eq!(dns.routes[1].target, Target::Group("default".into()));
    let device = dns.ways().pop().unwrap().1;
    assert_eq!(device, Via::Device("wg1".into()));

    let again = Given::file(&config.to_toml()).load().unwrap();

    assert_eq!(again.dns, config.dns);
    let json = config.to_json();
    assert_eq!(json["route"][2]["via"], "wg1");
    assert_eq!(json["group"][1]["strategy"], "fastest");
}

#[test]
fn what_is_wrong_with_groups_and_routes_is_named_with_its_place() {
    const ROUTE: &str = "[[route]]\ndomains = [\"a.example\"]\n";
    const GROUP: &str = "[[group]]\nname = \"g\"\n";
    for (text, message) in [
        (
            "[dns]\nstrategy = \"fast\"".to_owned(),
            "2:12: dns.strategy: `fast` is none of failover, fastest, parallel, round-robin",
        ),
        (
            "[dns]\nparallel = 3".to_owned(),
            "2:12: dns.parallel: the strategy is failover, which asks one at a time; set it to \"parallel\", or leave \
             this out",
        ),
        (
            "[dns]\nstrategy = \"parallel\"\nparallel = 1".to_owned(),
            "3:12: dns.parallel: 1 is out of range; it can be 2 to 16",
        ),
        (
            "[dns]\nfail_on = [\"noerror\"]".to_owned(),
            "2:12: dns.fail_on: `noerror` is none of timeout, formerr, servfail, nxdomain, notimp, refused",
        ),
        (
            "[[group]]\nupstreams = [\"udp://192.0.2.1\"]".to_owned(),
            "1:1: group: `name` is missing; routes refer to the group by it",
        ),
        (
            "[[group]]\nname = \"default\"\nupstreams = [\"udp://192.0.2.1\"]".to_owned(),
            "2:8: group.name: dns.upstreams is the group of that name; choose another",
        ),
        (
            format!("{GROUP}upstreams = []"),
            "3:13: group.upstreams: the list is empty; name one at least",
        ),
        (
            format!(
                "{GROUP}upstreams = [\"udp://192.0.2.1\"]\n{GROUP}upstreams = [\"udp://192.0.2.1\"]"
            ),
            "5:8: group.name: `g` is there already (FILE:1:1)",
        ),
        (
            format!("{GROUP}upstreams = [\"udp://192.0.2.1\"]\nweight = 3"),
            "4:1: unknown key `group.weight`; known here: name, upstreams, strategy, parallel, fail_on",
        ),
        (
            "[[route]]\ngroup = \"default\"".to_owned(),
            "1:1: route: `domains` is missing; write those that the route is for, such as [\"corp.example\"]",
        ),
        (
            "[[route]]\ndomains = []\ngroup = \"default\"".to_owned(),
            "2:11: route.domains: the list is empty; name one at least",
        ),
        (
            "[[route]]\ndomains = [\"a..b\"]\ngroup = \"default\"".to_owned(),
            "2:12: route.domains: `a..b` is no domain name; write one such as www.example.com",
        ),
        (
            "[[route]]\ndomains = [\".\"]\ngroup = \"default\"".to_owned(),
            "2:12: route.domains: `.` is every name; dns.upstreams are asked about those that have no route",
        ),
        (
            ROUTE.to_owned(),
            "1:1: route: who is asked is missing; write `group` or `upstreams`",
        ),
        (
            format!("{ROUTE}group = \"corp\""),
            "3:9: route.group: there is no group `corp`; groups here: default",
        ),
        (
            format!("{ROUTE}group = \"default\"\nupstreams = [\"udp://192.0.2.1\"]"),
            "3:9: route.group: a route has either a group or upstreams of its own; leave one out",
        ),
        (
            format!("{ROUTE}upstreams = [\"udp://10.30.30.30\"]"),
            "3:14: route.upstreams: udp://10.30.30.30 is a virtual address (virtual.addresses, default), where no resolver \
             is; name one outside, such as udp://8.8.8.8",
        ),
        (
            format!("{ROUTE}group = \"default\"\nvia = \"a/b\""),
            "4:7: route.via: `a/b` is no interface name; it has 1 to 15 bytes and neither spaces, `/` nor `:`",
        ),
        (
            format!(
                "{ROUTE}group = \"default\"\n[[route]]\ndomains = [\"A.example.\"]\ngroup = \"default\""
            ),
            "5:12: route.domains: `a.example` has a route already (FILE:2:12); a domain has one",
        ),
        (
            format!("{ROUTE}group = \"default\"\nvai = \"tunnel\""),
            "4:1: unknown key `route.vai`; did you mean `route.via`?",
        ),
    ] {
        assert_eq!(
            Given::file(&text).error(),
            format!("FILE:{message}"),
            "{text}"
        );
    }
}

#[test]
fn upstreams_that_rules_take_may_be_asked_through_the_tunnel_without_a_bypass() {
    let with = |via: &str| {
        Given::file(&format!(
            "[bypass]\nmark = 0\n[dns]\nupstreams = [\"udp://9.9.9.9:5353\"]\n[[rule]]\ndestination = \"any\"\nport = 53\n\
             [[route]]\ndomains = [\"a.example\"]\nupstreams = [\"udp://10.0.0.53\"]\nvia = \"{via}\""
        ))
        .load()
    };
    assert!(with("tunnel").is_ok());
    let error = with("bypass").unwrap_err().to_string();
    assert!(
        error.contains(":10:14: route.upstreams: udp://10.0.0.53 is taken by rule"),
        "{error}"
    );
}

struct Given {
    inherits_sockets: bool,
    directory: TempDir,
    named: Option<PathBuf>,
    default_file: PathBuf,
    environment: Vec<(OsString, OsString)>,
    flags: Layer,
}

impl Given {
    fn nothing() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let default_file = directory.path().join("default.toml");
        Self {
            inherits_sockets: false,
            directory,
            named: None,
            default_file,
            environment: Vec::new(),
            flags: Layer::default(),
        }
    }

    fn file(text: &str) -> Self {
        let mut given = Self::nothing();
        let path = given.directory.path().join("interceptor.toml");
        fs::write(&path, text).unwrap();
        given.named = Some(path);
        given
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: Key, flag: &'static str, text: &str) -> Self {
        self.flags.set_flag(key, flag, Some(text));
        self
    }

    fn load(&self) -> Result<Config, Error> {
        Config::load(&self.sources())
    }

    fn socket(&self) -> String {
        let path = self.sources().control_socket().unwrap();
        path.to_string_lossy().into_owned()
    }

    /// The error's one line, with FILE for the file's path.
    fn error(&self) -> String {
        let line = self.load().unwrap_err().to_string();
        assert!(!line.contains('\n'), "{line}");
        match &self.named {
            Some(path) => line.replace(&*path.to_string_lossy(), "FILE"),
            None => line,
        }
    }

    fn sources(&self) -> Sources {
        Sources {
            file: self.named.clone(),
            default_file: self.default_file.clone(),
            environment: self.environment.clone(),
            inherits_sockets: self.inherits_sockets,
            flags: self.flags.clone(),
        }
    }
}

fn rules(config: &Config) -> Vec<String> {
    config.rules.iter().map(ToString::to_string).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
