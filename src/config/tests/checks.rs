//! Tests of `[checks]`.

use super::*;

#[test]
fn what_is_allowed_and_what_is_not() {
    let wrong =
        |line: &str, problem: &str| check(&format!("[checks]\n{line}"), &format!("4: checks.{problem}"));
    wrong("kind = 'ping'", "kind = \"ping\": one of none, tcp, http, https, grpc, udp");
    wrong("every = '500ms'", "every = \"500ms\": 1s to 1h");
    wrong("timeout = 3", "timeout = 3: needs a unit, 100ms to 1m: \"3s\"");
    wrong("rise = 0", "rise = 0: a whole number from 1 to 10");
    wrong("fall = '2'", "fall = \"2\": a number, without quotes: a whole number from 1 to 10");
    wrong("unhealthy = 'weight'", "unhealthy = \"weight\": \"drain\" or \"remove\"");
    wrong("all_unhealthy = false", "all_unhealthy = false: text in quotes is wanted");
    wrong("all_unhealthy = 'none'", "all_unhealthy = \"none\": \"serve\" or \"refuse\"");
    wrong("path = 'healthz'", "path = \"healthz\": a path from / on, as in \"/healthz\"");
    wrong("host = 'a b'", "host = \"a b\": a name, with a port where one is needed, as in \"shop.example\"");
    let codes = "status codes from 100 to 599 and ranges of them, joined by commas, as in \"200-399,401\"";
    wrong("status = '2xx'", &format!("status = \"2xx\": {codes}"));

    let said = "[checks]\nkind = 'https'\nevery = '1m'\ntimeout = '500ms'\nrise = 2\nfall = 3\nunhealthy = 'remove'\n\
        all_unhealthy = 'refuse'\npath = '/ready?full'\nstatus = '200,401'\nhost = 'shop.example:8443'\n";
    let expected = Checks {
        kind: CheckKind::Https,
        every: Duration::from_mins(1),
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 3,
        unhealthy: Unhealthy::Remove,
        all_unhealthy: AllUnhealthy::Refuse,
        path: "/ready?full".into(),
        status: "200,401".parse().unwrap(),
        host: Some("shop.example:8443".into()),
        ..Checks::standard()
    };
    let case = Case::new(Some(&format!("{ALLOWED}{said}")));
    assert_eq!(case.settings(), Settings { checks: expected, ..defaults() });
}
