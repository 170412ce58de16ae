package rules

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/cni/netnstest"
	"github.com/ambit-mesh/ambit/cni/xtables"
)

// kinds runs a test once for each kind of iptables; k prefers that kind.
func kinds(t *testing.T, test func(t *testing.T, k *Kernel, kind string)) {
	t.Helper()
	netnstest.Need(t, "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy")
	for _, kind := range []string{"nft", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, kernel(t, kind), kind)
		})
	}
}

// kernel returns a Kernel whose host uses the kind.
func kernel(t *testing.T, kind string) *Kernel {
	t.Helper()
	host := netnstest.New(t)
	netnstest.Run(t, host, "iptables-"+kind+" -A FORWARD -j ACCEPT")
	k, err := NewKernel(context.Background(), host)
	if err != nil {
		t.Fatal(err)
	}
	if k.Host().Kind != kind {
		t.Fatalf("took the host's kind for %s", k.Host().Kind)
	}
	return k
}

var volatile = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]`)

// listing is all that a namespace holds, as the kernel tells.
func listing(t *testing.T, netns ns.NetNS) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save",
		"ip rule", "ip route show table all type local default", "ip -6 rule", "ip -6 route show table all type local default"} {
		out := netnstest.Run(t, netns, c)
		b.WriteString("$ " + c + "\n" + volatile.ReplaceAllString(out, ""))
	}
	return b.String()
}

// TestKernelListsGoldens loads every golden into the kernel and reads it back.
func TestKernelListsGoldens(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		for _, g := range goldens(t) {
			t.Run(filepath.Base(g.path), func(t *testing.T) {
				netns, set := netnstest.New(t), For(g.config)
				if err := k.Apply(t.Context(), netns, set); err != nil {
					t.Fatal(err)
				}
				for _, f := range set.Families {
					got := map[string]xtables.Tables{}
					netnstest.In(t, netns, func() error {
						now, err := k.read(t.Context(), f.Family)
						for b, tt := range now {
							got[b.Kind] = tt
						}
						return err
					})
					for _, c := range f.Chains {
						have, there := got[kind].Chain(c.Table, c.Name)
						if want := c.kernel().Rules; there != (len(c.Rules) > 0) || !slices.Equal(have, want) {
							t.Errorf("%s %s %s: kernel lists\n%q, want\n%q", f.Family, c.Table, c.Name, have, want)
						}
					}
				}
				st, err := k.Inspect(t.Context(), netns, set)
				if err != nil || !st.Captured || !st.Leftover || st.Foreign || len(st.Differences) > 0 {
					t.Errorf("state after Apply: %+v, %v\n%s", st, err, listing(t, netns))
				}
			})
		}
	})
}

// TestRemoveTakesAllAndOnlyOurs: whatever else was there stays as it was.
func TestRemoveTakesAllAndOnlyOurs(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns := netnstest.New(t)
		for _, c := range []string{
			"iptables-" + kind + " -t nat -N THEIRS", "iptables-" + kind + " -t nat -A THEIRS -p tcp --dport 53 -j ACCEPT",
			"iptables-" + kind + " -t nat -A OUTPUT -j THEIRS", "iptables-" + kind + " -t mangle -A PREROUTING -p udp -j MARK --set-mark 0x7",
			"ip6tables-" + kind + " -A INPUT -p udp -j ACCEPT",
			"ip rule add pref 100 fwmark 0x7 lookup 100", "ip route add unreachable 192.0.2.0/24 table 100",
		} {
			netnstest.Run(t, netns, c)
		}
		before := listing(t, netns)
		for range 2 { // both directions are idempotent
			if err := k.Apply(t.Context(), netns, For(Config{IPv6: true})); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := k.Remove(t.Context(), netns); err != nil {
				t.Fatal(err)
			}
		}
		after := listing(t, netns)
		if kind == "legacy" {
			before, after = withoutEmpty(before), withoutEmpty(after)
		}
		if withoutEmpty(before) != withoutEmpty(after) {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		st, err := k.Inspect(t.Context(), netns, For(Config{IPv6: true}))
		if err != nil || st.Captured || st.Leftover {
			t.Errorf("state after Remove: %+v, %v", st, err)
		}
	})
}

// withoutEmpty drops tables without rules and chains: the legacy kind keeps a table for good once it was used, and the
// nft kind keeps the table of a chain that is gone.
func withoutEmpty(listing string) string {
	return regexp.MustCompile(`(?m)^\*\w+\n(:\w+ ACCEPT\n)*COMMIT\n`).ReplaceAllString(listing, "")
}

// TestRemoveFindsTheOtherKind: rules put by an agent that used the other kind, and by an older one with other rules.
func TestRemoveFindsTheOtherKind(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns, other := netnstest.New(t), "legacy"
		if kind == other {
			other = "nft"
		}
		if err := kernel(t, other).Apply(t.Context(), netns, For(Config{IPv6: true})); err != nil {
			t.Fatal(err)
		}
		netnstest.Run(t, netns, "iptables-"+other+" -t nat -A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -j RETURN")
		// The kind that is there is kept, and repaired.
		if err := k.Apply(t.Context(), netns, For(Config{IPv6: true})); err != nil {
			t.Fatal(err)
		}
		if out := netnstest.Run(t, netns, "iptables-"+kind+"-save"); strings.Contains(out, "ISTIO") {
			t.Errorf("rules in both kinds:\n%s", out)
		}
		if out := netnstest.Run(t, netns, "iptables-"+other+"-save"); strings.Contains(out, "-p udp") {
			t.Errorf("not repaired:\n%s", out)
		}
		if err := k.Unhook(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
		st, err := k.Inspect(t.Context(), netns, For(Config{IPv6: true}))
		if err != nil || st.Captured || !st.Leftover {
			t.Errorf("state after Unhook: %+v, %v", st, err)
		}
		if err := k.Remove(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
		if out := listing(t, netns); strings.Contains(out, "ISTIO") || strings.Contains(out, "32764") {
			t.Errorf("left:\n%s", out)
		}
	})
}

// TestRulesInBothKinds: a namespace with ours in both comes to one, without a moment of no capture in between.
func TestRulesInBothKinds(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns, set := netnstest.New(t), For(Config{IPv6: true})
		for _, b := range k.backends {
			only := &Kernel{backends: []*xtables.Backend{b}}
			if err := only.Apply(t.Context(), netns, set); err != nil {
				t.Fatal(err)
			}
		}
		st, err := k.Inspect(t.Context(), netns, set)
		if err != nil || len(st.Differences) == 0 {
			t.Errorf("rules in both kinds pass as right: %+v, %v", st, err)
		}
		if err := k.Apply(t.Context(), netns, set); err != nil {
			t.Fatal(err)
		}
		if st, err = k.Inspect(t.Context(), netns, set); err != nil || len(st.Differences) > 0 || !st.Captured {
			t.Errorf("state: %+v, %v\n%s", st, err, listing(t, netns))
		}
	})
}

func TestForeignChainsAreLeftAlone(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns := netnstest.New(t)
		for _, c := range []string{"-N ISTIO_OUTPUT", "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN", "-A OUTPUT -j ISTIO_OUTPUT"} {
			netnstest.Run(t, netns, "iptables-"+kind+" -t nat "+c)
		}
		before := netnstest.Run(t, netns, "iptables-"+kind+" -t nat -S")
		if err := k.Apply(t.Context(), netns, For(Config{})); err == nil || !strings.Contains(err.Error(), ErrForeign.Error()) {
			t.Errorf("Apply: %v", err)
		}
		for name, f := range map[string]func(context.Context, ns.NetNS) error{"Unhook": k.Unhook, "Remove": k.Remove} {
			if err := f(t.Context(), netns); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := netnstest.Run(t, netns, "iptables-"+kind+" -t nat -S"); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// TestRewriteNeverUncaptures looks at the namespace after every single command of a repair.
func TestRewriteNeverUncaptures(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns, set := netnstest.New(t), For(Config{})
		if err := k.Apply(t.Context(), netns, set); err != nil {
			t.Fatal(err)
		}
		netnstest.Run(t, netns, "iptables-"+kind+" -t nat -I ISTIO_OUTPUT 1 -p tcp --dport 9 -j ACCEPT")
		for commands := 1; ; commands++ {
			ctx := &cutOff{Context: t.Context(), after: commands}
			err := k.Apply(ctx, netns, set)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			st, ierr := k.Inspect(t.Context(), netns, set)
			if ierr != nil || !capturing(t, k, netns) {
				t.Fatalf("cut off after %d commands, the namespace does not capture: %v\n%s", commands, ierr, listing(t, netns))
			}
			if err == nil {
				if len(st.Differences) > 0 {
					t.Fatalf("not repaired: %v", st.Differences)
				}
				if commands < 3 {
					t.Fatalf("repaired in %d commands: the test did not see the steps", commands)
				}
				return
			}
			netnstest.Run(t, netns, "iptables-"+kind+" -t nat -I ISTIO_OUTPUT 1 -p tcp --dport 9 -j ACCEPT")
		}
	})
}

// capturing says whether some hooked chain of nat OUTPUT ends in the redirect.
func capturing(t *testing.T, k *Kernel, netns ns.NetNS) (yes bool) {
	t.Helper()
	netnstest.In(t, netns, func() error {
		now, err := k.read(t.Context(), xtables.IPv4)
		for _, tt := range now {
			for _, name := range []string{chainOutput, chainOutput + "_NEW"} {
				rules, _ := tt.Chain("nat", name)
				if tt.Hooked("nat", "OUTPUT", name) && len(rules) > 0 && strings.HasSuffix(rules[len(rules)-1], "--to-ports 15001") {
					yes = true
				}
			}
		}
		return err
	})
	return yes
}

// cutOff is a context that ends after it was asked a number of times, as if the agent were killed there.
type cutOff struct {
	context.Context
	after int
}

func (c *cutOff) Err() error {
	if c.after--; c.after < 0 {
		return context.Canceled
	}
	return nil
}

// TestPodWithoutIPv6: the kernel has IPv6 and the pod does not.
func TestPodWithoutIPv6(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		netns := netnstest.New(t)
		netnstest.Run(t, netns, "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1")
		if err := k.Apply(t.Context(), netns, For(Config{IPv6: true})); err != nil {
			t.Fatal(err)
		}
		if st, err := k.Inspect(t.Context(), netns, For(Config{IPv6: true})); err != nil || len(st.Differences) > 0 || !st.Captured {
			t.Errorf("state: %+v, %v", st, err)
		}
		if err := k.Remove(t.Context(), netns); err != nil {
			t.Fatal(err)
		}
		if st, err := k.Inspect(t.Context(), netns, For(Config{IPv6: true})); err != nil || st.Leftover {
			t.Errorf("state: %+v, %v", st, err)
		}
	})
}

// TestAnotherRelease: chains that this release does not write, put by a later one or by Istio's agent with DNS capture, are
// taken away when a pod is taken over, and when it is released.
func TestAnotherRelease(t *testing.T) {
	kinds(t, func(t *testing.T, k *Kernel, kind string) {
		for name, act := range map[string]func(netns ns.NetNS) error{
			"take over": func(netns ns.NetNS) error { return k.Apply(t.Context(), netns, For(Config{})) },
			"release":   func(netns ns.NetNS) error { return k.Remove(t.Context(), netns) },
		} {
			netns := netnstest.New(t)
			for _, c := range []string{
				"-t raw -N AMBIT_DNS", "-t raw -N AMBIT_MORE", "-t raw -A AMBIT_MORE -j ACCEPT", "-t raw -A AMBIT_DNS -p udp -j AMBIT_MORE",
				"-t raw -A OUTPUT -p udp -m udp --dport 53 -j AMBIT_DNS", "-t raw -A OUTPUT -p udp -j ACCEPT",
				"-t raw -N ISTIO_OUTPUT", "-t raw -A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1", "-t raw -A OUTPUT -j ISTIO_OUTPUT",
				"-t nat -N ISTIO_OUTPUT", "-t nat -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001", "-t nat -A OUTPUT -j ISTIO_OUTPUT",
			} {
				netnstest.Run(t, netns, "iptables-"+kind+" "+c)
			}
			if st, err := k.Inspect(t.Context(), netns, For(Config{})); err != nil || !st.Captured || st.Foreign || len(st.Differences) == 0 {
				t.Errorf("%s: before: %+v, %v", name, st, err)
			}
			if err := act(netns); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, listing(t, netns))
			}
			raw := netnstest.Run(t, netns, "iptables-"+kind+" -t raw -S")
			if strings.Contains(raw, "ISTIO") || strings.Contains(raw, "AMBIT") || !strings.Contains(raw, "-A OUTPUT -p udp -j ACCEPT") {
				t.Errorf("%s: table raw:\n%s", name, raw)
			}
			st, err := k.Inspect(t.Context(), netns, For(Config{}))
			if took := name == "take over"; err != nil || st.Captured != took || took && len(st.Differences) > 0 || !took && st.Leftover {
				t.Errorf("%s: after: %+v, %v\n%s", name, st, err, listing(t, netns))
			}
		}
	})
}
