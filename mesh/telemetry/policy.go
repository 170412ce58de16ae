package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/mesh/policy"
)

// noPolicy is the value of the policy label where no policy matched: there are ALLOW policies, and none allows.
const noPolicy = "-"

// Modes of decisions: the values of the mode label.
const (
	modeEnforced = "enforced"
	modeDryRun   = "dry_run"
	modeMissing  = "missing" // the workload names a policy that is not there
)

// Policies counts decisions by the policy that made them. It is safe for concurrent use.
type Policies struct {
	exists    func(key string) bool
	decisions *xsync.Map[decisionKey, *policyCount]
	closed    *xsync.Map[string, *policyCount]

	decisionsDesc, closedDesc *prometheus.Desc

	mu sync.Mutex // one Collect at a time
}

type decisionKey struct{ policy, decision, mode string }

// policyCount is one series.
type policyCount struct {
	n atomic.Uint64
	// gone is when a collection first found that the policy is not there; guarded by Policies.mu.
	gone time.Time
}

// NewPolicies makes Policies and registers them. It panics if they are registered already. exists tells whether there is a
// policy of that key: series of those that are gone are dropped some minutes later.
func NewPolicies(reg prometheus.Registerer, exists func(key string) bool) *Policies {
	p := &Policies{
		exists:    exists,
		decisions: xsync.NewMap[decisionKey, *policyCount](),
		closed:    xsync.NewMap[string, *policyCount](),
		decisionsDesc: prometheus.NewDesc("ambit_policy_decisions_total",
			"Connections that a policy decided on, or would have (mode dry_run); policy is - where none of the ALLOW policies matched.",
			[]string{"policy", "decision", "mode"}, nil),
		closedDesc: prometheus.NewDesc("ambit_policy_connections_closed_total",
			"Connections that were open when a change of policy or workload denied them.", []string{"policy"}, nil),
	}
	reg.MustRegister(p)
	return p
}

// Decided counts a decision on a connection, and what dry-run policies would have decided. A workload to which no policy
// applies has no decisions.
func (p *Policies) Decided(d policy.Decision) {
	switch {
	case d.Verdict == policy.Undecided && d.Policy != "":
		p.count(decisionKey{d.Policy, "deny", modeMissing})
	case d.Verdict == policy.Denied:
		p.count(decisionKey{named(d.Policy), "deny", modeEnforced})
	case d.Verdict == policy.Allowed && d.Policy != "":
		p.count(decisionKey{d.Policy, "allow", modeEnforced})
	}
	for _, dry := range d.DryRun {
		decision := "allow"
		if dry.Verdict == policy.Denied {
			decision = "deny"
		}
		p.count(decisionKey{dry.Policy.Key(), decision, modeDryRun})
	}
}

// Closed counts a connection that was open and is denied by now.
func (p *Policies) Closed(d policy.Decision) {
	c, _ := p.closed.LoadOrCompute(named(d.Policy), func() (*policyCount, bool) { return &policyCount{}, false })
	c.n.Add(1)
}

func (p *Policies) count(k decisionKey) {
	c, ok := p.decisions.Load(k)
	if !ok {
		c, _ = p.decisions.LoadOrCompute(k, func() (*policyCount, bool) { return &policyCount{}, false })
	}
	c.n.Add(1)
}

func named(key string) string {
	if key == "" {
		return noPolicy
	}
	return key
}

// Describe implements prometheus.Collector.
func (p *Policies) Describe(ch chan<- *prometheus.Desc) {
	ch <- p.decisionsDesc
	ch <- p.closedDesc
}

// Collect implements prometheus.Collector, and drops what has expired.
func (p *Policies) Collect(ch chan<- prometheus.Metric) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for k, c := range p.decisions.All() {
		ch <- prometheus.MustNewConstMetric(p.decisionsDesc, prometheus.CounterValue, float64(c.n.Load()), k.policy, k.decision, k.mode)
		if p.expired(k.policy, c, now) {
			p.decisions.Delete(k)
		}
	}
	for key, c := range p.closed.All() {
		ch <- prometheus.MustNewConstMetric(p.closedDesc, prometheus.CounterValue, float64(c.n.Load()), key)
		if p.expired(key, c, now) {
			p.closed.Delete(key)
		}
	}
}

// expired reports whether a series is to be dropped after what it has now was exposed.
func (p *Policies) expired(key string, c *policyCount, now time.Time) bool {
	if key == noPolicy || p.exists(key) {
		c.gone = time.Time{}
		return false
	}
	if c.gone.IsZero() {
		c.gone = now
	}
	return now.Sub(c.gone) >= expireAfter
}
