package rules

import (
	"context"
	"testing"

	"github.com/ambit-mesh/ambit/cni/netnstest"
)

// BenchmarkApply is what capture adds to the start of a pod, dual stack, on the kernel's side.
func BenchmarkApply(b *testing.B) {
	netnstest.Need(b, "iptables-nft", "ip6tables-nft")
	k, err := NewKernel(context.Background(), netnstest.New(b))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		n := netnstest.New(b)
		b.StartTimer()
		if err := k.Apply(b.Context(), n, For(Config{IPv6: true})); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInspect is what the verification of a captured pod costs.
func BenchmarkInspect(b *testing.B) {
	netnstest.Need(b, "iptables-nft", "ip6tables-nft")
	n := netnstest.New(b)
	k, err := NewKernel(context.Background(), n)
	if err != nil {
		b.Fatal(err)
	}
	if err := k.Apply(b.Context(), n, For(Config{IPv6: true})); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if st, err := k.Inspect(b.Context(), n, For(Config{IPv6: true})); err != nil || len(st.Differences) > 0 {
			b.Fatal(st, err)
		}
	}
}
