// Package lab builds small networks out of network namespaces: hosts on one
// underlay bridge, a real etcd, a real ripstopd on each host and pods behind
// it. Tests, ripstop-lab and the demo run on it.
//
// Nothing that it makes has a name outside the lab's own process: namespaces
// are held by open files alone and child processes die with the lab, so even a
// lab that was killed leaves nothing behind but its folder.
//
// Beside backend/kernel it alone speaks netlink at length: it builds
// the world that the daemon then finds.
package lab
