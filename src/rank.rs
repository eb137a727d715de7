//! Rendezvous ranks: who comes first for a thing, agreed on by all nodes without a word.
//!
//! Pure. Each thing has an order of nodes of its own, and a node that comes or goes changes no other node's place before
//! or behind the rest (highest random weight hashing, Thaler and Ravishankar 1998).

/// The weight of `node` for the thing called `thing`: FNV-1a over both, finished by the mixer of splitmix64. The same on
/// every node and in every version.
pub fn weight(thing: &[u8], node: &str) -> u64 {
    let bytes = thing.iter().copied().chain(node.bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The nodes in their order for `thing`, the first one first.
pub fn ranked<'a>(thing: &[u8], nodes: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<(u64, &str)> = nodes.into_iter().map(|node| (weight(thing, node), node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, node)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_leaves_changes_nobody_elses_order() {
        let nodes = ["node-a", "node-b", "node-c", "node-d"];
        let mut all = ranked(b"some service", nodes);
        let without = ranked(b"some service", nodes.into_iter().filter(|node| *node != "node-b"));
        all.retain(|node| *node != "node-b");
        assert_eq!(all, without);
    }
}
