// Package trials tries what is shipped on the real things that it is for: a container
// runtime, a container engine, and systemd as a machine's first process. Its tests are
// of the build tag runtime: see "make test-runtime", "make test-image", "make test-docker"
// and "make test-systemd".
package trials
