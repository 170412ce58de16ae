package directory_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Timing of policies that are narrowed, as docs/policy.md has it.
const settle, silence = 500 * time.Millisecond, 45 * time.Second

// narrowing is a directory with the pods a and b, and a policy of their namespace that denies port 80 and is to be narrowed to
// a selector.
type narrowing struct {
	*directory.Directory
	t *testing.T
}

func newNarrowing(t *testing.T) narrowing {
	d := narrowing{newDirectory(), t}
	apply(t, d.Directory, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
	d.policy(security.Scope_NAMESPACE, 80)
	d.expect("at first", true, true)
	return d
}

func (d narrowing) policy(scope security.Scope, port uint32) {
	d.t.Helper()
	p := &security.Authorization{Namespace: "shop", Name: "p", Scope: scope, Action: security.Action_DENY,
		Rules: []*security.Rule{{Clauses: []*security.Clause{{Matches: []*security.Match{{DestinationPorts: []uint32{port}}}}}}}}
	if rejected := d.HandleAuthorizations(resources(d.t, p), nil); len(rejected) > 0 {
		d.t.Fatal(rejected)
	}
}

// named tells that pods name the policy.
func (d narrowing) named(names ...string) {
	d.t.Helper()
	for _, name := range names {
		addr := map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"}[name]
		apply(d.t, d.Directory, pod(name, addr, func(w *workloadpb.Workload) { w.AuthorizationPolicies = []string{"shop/p"} }))
	}
}

func (d narrowing) denies(name string, port uint16) bool {
	w := d.Workload("Kubernetes//Pod/shop/" + name)
	c := policy.Connection{Destination: netip.AddrPortFrom(w.Addrs[0], port)}
	return d.Policies(w).Evaluate(c).Verdict == policy.Denied
}

func (d narrowing) expect(when string, a, b bool) {
	d.t.Helper()
	if gotA, gotB := d.denies("a", 80), d.denies("b", 80); gotA != a || gotB != b {
		d.t.Errorf("%s: denied to a: %v, want %v; to b: %v, want %v", when, gotA, a, gotB, b)
	}
}

// pass lets time pass in the bubble, and waits until what was due is done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestNarrowedPolicy: a policy that gains a selector is in force for its namespace until the pods that name it are known.
func TestNarrowedPolicy(t *testing.T) {
	t.Run("the pods come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			generation, told := d.PolicyGeneration(), 0
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			d.expect("before the pods name it", true, true)
			if !d.Narrowing("shop/p") || d.Narrowing("shop/q") {
				t.Error("it is not told that the former state is in force")
			}
			pass(10 * time.Second)
			d.expect("the pods are late", true, true)
			d.named("a")
			d.expect("one pod names it, another may follow", true, true)
			d.Subscribe(func(c directory.Change) { told += len(c.Policies) })
			pass(settle)
			d.expect("the pods are known", true, false)
			if d.Narrowing("shop/p") {
				t.Error("it is told that the former state is in force still")
			}
			if told != 1 || d.PolicyGeneration() < generation+2 {
				t.Errorf("told of %d policies, generation %d after %d", told, d.PolicyGeneration(), generation)
			}
		})
	})
	t.Run("in parts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			for range 20 {
				d.named("a")
				pass(settle - time.Millisecond)
				if !d.denies("a", 80) {
					t.Fatal("it is not in force for a pod that names it")
				}
			}
			d.expect("addresses that never cease do not keep it for ever", true, false)
		})
	})
	t.Run("a second part", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			d.named("a")
			pass(settle - time.Millisecond)
			d.named("b")
			pass(silence)
			d.expect("both name it", true, true)
		})
	})
	t.Run("nobody names it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			pass(silence - time.Millisecond)
			d.expect("the pods may be late", true, true)
			pass(time.Millisecond)
			d.expect("there are none", false, false)
		})
	})
	t.Run("the stream ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			d.StreamEnded()
			pass(24 * time.Hour)
			d.expect("the control plane is away", true, true)
			d.HandleAuthorizations(nil, nil)
			pass(24 * time.Hour)
			d.expect("no addresses yet", true, true)
			d.named("a") // the first push of a stream is whole
			d.expect("the pods are known", true, false)
		})
	})
}

// TestNarrowedPolicyChanges: what becomes of it meanwhile, and of one that was the mesh's.
func TestNarrowedPolicyChanges(t *testing.T) {
	t.Run("it changes again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			pass(silence / 2)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 81)
			pass(silence - time.Millisecond)
			d.expect("the selector is another one", true, true)
			d.policy(security.Scope_NAMESPACE, 81)
			d.expect("it is the namespace's again, with another port", false, false)
			pass(2 * silence)
			if !d.denies("b", 81) {
				t.Error("it left the namespace that it is in force for")
			}
			d.policy(security.Scope_WORKLOAD_SELECTOR, 81)
			d.HandleAuthorizations(nil, []string{"shop/p"})
			if d.denies("a", 81) {
				t.Error("it is in force after it was removed")
			}
		})
	})
	t.Run("from the mesh", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newNarrowing(t)
			d.policy(security.Scope_GLOBAL, 80)
			d.policy(security.Scope_WORKLOAD_SELECTOR, 80)
			d.expect("before the pods name it", true, true)
			d.named("b")
			pass(settle)
			d.expect("the pods are known", false, true)
		})
	})
}
