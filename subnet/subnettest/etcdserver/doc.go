// Package etcdserver runs a real etcd for tests and the lab, as a child process
// that can be killed. The child is the running binary itself, executed again:
// call [RunIfChild] first in TestMain or main. It is the only package that
// links an etcd server.
package etcdserver
