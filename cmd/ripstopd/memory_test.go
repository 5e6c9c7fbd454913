package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestMemoryIsGivenBack: what a burst left behind goes back to the host soon after,
// and a calm daemon collects nothing.
func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- settleMemory(ctx, ready) }()
		synctest.Wait()
		close(ready)
		time.Sleep(lookEvery + time.Second)
		synctest.Wait()

		before := readMemory()
		const burst = 256 << 20
		garbage(burst)
		if now := readMemory(); now.heap < before.heap+burst/2 {
			t.Fatalf("%d MB after %d MB: the burst left nothing", now.heap>>20, before.heap>>20)
		}
		time.Sleep(3 * lookEvery)
		synctest.Wait()
		settled := readMemory()
		if settled.heap > before.heap+burst/8 {
			t.Errorf("%d MB after %d MB: not given back", settled.heap>>20, before.heap>>20)
		}
		time.Sleep(10 * lookEvery)
		synctest.Wait()
		if now := readMemory(); now.cycles != settled.cycles {
			t.Errorf("%d collections while nothing happened", now.cycles-settled.cycles)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// sink keeps the compiler from leaving out what nobody uses.
var sink [][]byte

func garbage(size int) {
	const each = 64 << 10
	for range size / each {
		sink = append(sink, make([]byte, each))
	}
	sink = nil
}
