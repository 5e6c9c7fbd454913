// Package etcd keeps the network's config and leases in etcd v3, under the
// keys and in the form that flannel uses. It is the only importer of the etcd
// client.
//
// Keys, with <p> for the prefix:
//
//	<p>/config          the network's config
//	<p>/subnets/<key>   one record per lease, on an etcd lease that its holder keeps alive
//	<p>/ripstop/epoch   a random name of this store's life: another means another store
//	<p>/ripstop/nodes/  one key per living node, on an etcd lease of a minute
//	<p>/ripstop/claim   the lock under which IPv6 subnets are claimed, held for moments
//
// Nothing else is ever written below <p>/subnets.
package etcd
