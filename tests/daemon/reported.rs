//! What scripts read of `kvip status --json`: its fields and their shape, which change only with the schema's number.

use std::path::Path;
use std::{env, fs};

use crate::world::{World, settings, snapshot};

#[test]
fn the_status_as_json() {
    let mut world = World::new(settings());
    let mut snapshot = snapshot();
    snapshot.vip_map.as_mut().unwrap().insert("10.87.2.52".into(), "default/absent".into());
    world.list(snapshot);
    world.turn();
    world.tick(3);
    let text = serde_json::to_string_pretty(&world.status()).unwrap() + "\n";
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon/status.json");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "UPDATE_GOLDEN=1 writes it anew");
}
