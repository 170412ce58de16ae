package vips

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// entry wants addresses for its hosts.
func entry(name string, created int64, hosts ...string) *cluster.ServiceEntry {
	return &cluster.ServiceEntry{
		Key: cluster.Key{Namespace: "shop", Name: name}, Created: time.Unix(created, 0), Hosts: hosts,
		Resolution: cluster.ResolutionDNS, AutoAddress: true,
	}
}

// follow applies a plan.
func follow(t *testing.T, entries []*cluster.ServiceEntry) {
	t.Helper()
	plan, short := Plan(entries)
	if len(short) > 0 {
		t.Fatalf("no address left for %v", short)
	}
	for _, a := range plan {
		for _, e := range entries {
			if e.Key == a.Key {
				e.Assigned = a.Addresses
			}
		}
	}
}

// check fails the test unless each host has one address of each family, and nobody two have the same.
func check(t *testing.T, entries []*cluster.ServiceEntry) {
	t.Helper()
	seen := map[netip.Addr]string{}
	for _, e := range entries {
		var hosts []string
		for _, a := range e.Assigned {
			if other, twice := seen[a.Addr]; twice {
				t.Errorf("%s is %s's and %s's", a.Addr, other, a.Host)
			}
			seen[a.Addr] = a.Host
			if !rangeIPv4.Contains(a.Addr) && !rangeIPv6.Contains(a.Addr) {
				t.Errorf("%s has %s, of no range", a.Host, a.Addr)
			}
			hosts = append(hosts, fmt.Sprint(a.Host, a.Addr.Is4()))
		}
		var want []string
		for _, h := range e.Hosts {
			want = append(want, fmt.Sprint(h, true), fmt.Sprint(h, false))
		}
		if diff := cmp.Diff(want, hosts); diff != "" {
			t.Errorf("%s (-want +got):\n%s", e.Key, diff)
		}
	}
	if plan, short := Plan(entries); len(plan)+len(short) > 0 {
		t.Errorf("a plan that was followed asks for %v, %v", plan, short)
	}
}

func TestPlan(t *testing.T) {
	var entries []*cluster.ServiceEntry
	for i := range 2000 { // enough for names to point to the same place
		entries = append(entries, entry(fmt.Sprint("e", i), int64(i), fmt.Sprint("h", i, ".example"), fmt.Sprint("i", i, ".example")))
	}
	follow(t, entries)
	check(t, entries)

	// A status that is lost comes back as it was, and the order in which entries are listed does not matter.
	before := slices.Clone(entries[7].Assigned)
	entries[7].Assigned = nil
	slices.Reverse(entries)
	follow(t, entries)
	slices.Reverse(entries)
	if diff := cmp.Diff(before, entries[7].Assigned, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("addresses after a loss (-before +after):\n%s", diff)
	}

	// A host that comes, another that goes: the rest keeps what it has.
	kept := entries[3].Assigned[2:]
	entries[3].Hosts = []string{"new.example", entries[3].Hosts[1]}
	follow(t, entries)
	check(t, entries)
	if diff := cmp.Diff(kept, entries[3].Assigned[2:], cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("a host that stayed (-before +after):\n%s", diff)
	}

	// Two that have the same: the older one keeps it.
	stolen := entries[10].Assigned[0].Addr
	entries[11].Assigned[0].Addr = stolen
	follow(t, entries)
	check(t, entries)
	if entries[10].Assigned[0].Addr != stolen {
		t.Error("the younger one has the address of the older one now")
	}
}

func TestPlanLeavesAlone(t *testing.T) {
	taken := at(rangeIPv4, 77)
	declined := entry("declined", 1, "d.example")
	declined.AutoAddress = false
	declined.Assigned = []cluster.HostAddr{{Host: "d.example", Addr: taken}}
	none := entry("none", 1, "n.example")
	none.Resolution = cluster.ResolutionNone
	wildcard := entry("wildcard", 1, "*.w.example")
	unread := entry("unread", 1)
	unread.Assigned = []cluster.HostAddr{{Host: "u.example", Addr: taken}}
	plan, short := Plan([]*cluster.ServiceEntry{declined, none, wildcard, unread})
	if len(short) > 0 {
		t.Fatalf("no address left for %v", short)
	}
	if diff := cmp.Diff([]Assignment{{Key: declined.Key}}, plan, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

// What people wrote is nobody else's, and a range without free addresses keeps nobody from the other.
func TestPlanExhausted(t *testing.T) {
	written := entry("written", 1, "w.example")
	written.AutoAddress, written.Addresses = false, []netip.Prefix{netip.MustParsePrefix("240.240.0.0/15")}
	wants := entry("wants", 2, "a.example")
	plan, short := Plan([]*cluster.ServiceEntry{written, wants})
	if diff := cmp.Diff(map[cluster.Key][]cluster.Shortage{wants.Key: {{Host: "a.example", Range: rangeIPv4}}}, short, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("shortages (-want +got):\n%s", diff)
	}
	if len(plan) != 1 || len(plan[0].Addresses) != 1 || !rangeIPv6.Contains(plan[0].Addresses[0].Addr) {
		t.Errorf("plan %v, want an IPv6 address", plan)
	}
}

// Parts of a range that people wrote are left out, and no more than those.
func TestPlanAroundWritten(t *testing.T) {
	written := entry("written", 1, "w.example")
	written.AutoAddress = false
	for _, p := range []string{"240.240.0.0/17", "240.240.128.0/18", "240.240.192.0/19", "240.240.224.8/29", "240.240.255.255/32", "2001:2:0:1::/64"} {
		written.Addresses = append(written.Addresses, netip.MustParsePrefix(p))
	}
	// Of the range's last 8,192, eight and the very last are written.
	const left = 8192 - 9
	entries := []*cluster.ServiceEntry{written}
	for i := range left + 5 {
		entries = append(entries, entry(fmt.Sprint("e", i), int64(i), fmt.Sprint("h", i, ".example")))
	}
	plan, short := Plan(entries)
	if len(plan) != left+5 || len(short) != 5 {
		t.Fatalf("%d assignments and %d shortages, want %d and 5", len(plan), len(short), left+5)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range plan {
		for _, h := range a.Addresses {
			if seen[h.Addr] || slices.ContainsFunc(written.Addresses, func(p netip.Prefix) bool { return p.Contains(h.Addr) }) {
				t.Errorf("%s has %s, which is another's", h.Host, h.Addr)
			}
			seen[h.Addr] = true
		}
	}
}

// BenchmarkPlanExhausted plans for twice as many hosts as a range has addresses.
func BenchmarkPlanExhausted(b *testing.B) {
	var entries []*cluster.ServiceEntry
	for i := range 2 * size {
		entries = append(entries, entry(fmt.Sprint("e", i), int64(i), fmt.Sprint("h", i, ".example")))
	}
	for b.Loop() {
		if _, short := Plan(entries); len(short) != size {
			b.Fatalf("%d are short of addresses", len(short))
		}
	}
}
