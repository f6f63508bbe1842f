"""Tests of the DHT. The twelve that its design demands, and where each is:

=== ========================================= ==================================================
 1  contract with `kademlia` and `rpcudp`     `test_contract.py`
 2  merge laws, as properties                 `test_records.py` (merging), `test_storage.py`
 3  fuzz of datagrams, wrong-typed fields     `test_fuzz.py`, `test_wire.py`, `test_hostile.py`
 4  poisoned gossip under both loops          `test_hostile.py`: test_poisoned_contacts…
 5  60 nodes, WAN delays, 1 % loss, 30 % die  `test_wan.py`
 6  lives end, nobody extends them            `test_directory.py`: test_a_dead_peer_is_gone…,
                                              test_a_restart_with_an_older_clock_recovers
 7  cascade of keys                           `test_cascade.py`
 8  evil holders nearest to a key             `test_hostile.py`: test_evil_holders…,
                                              `test_cascade.py`: test_a_liar_who_says_more…
 9  foreign and changing keys, tokens         `test_swarm_keys.py`, `test_hostile.py`:
                                              test_a_write_needs_a_token_of_the_same_address
10  cancelled fetch, idempotent close         `test_hostile.py`: test_a_cancelled_fetch…,
                                              `test_directory.py`: test_closing_is_idempotent…
11  peers file; a parted swarm heals          `test_peers_file.py`, `test_bootstrap.py`:
                                              test_a_parted_swarm_heals
12  who cannot be reached is in no table      `test_directory.py`: test_a_client_never…,
                                              `test_hostile.py`: test_an_unverified_id…
=== ========================================= ==================================================
"""
