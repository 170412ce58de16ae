package policy

// Dump is a Policy as a config_dump shows it, in the names that istioctl reads.
type Dump struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	DryRun    bool            `json:"dryRun,omitempty"`
	Invalid   string          `json:"invalid,omitempty"`
	Rules     [][][]DumpMatch `json:"rules"`
}

// DumpMatch is one match of a clause of a rule.
type DumpMatch struct {
	Namespaces          []DumpText    `json:"namespaces,omitempty"`
	NotNamespaces       []DumpText    `json:"notNamespaces,omitempty"`
	Principals          []DumpText    `json:"principals,omitempty"`
	NotPrincipals       []DumpText    `json:"notPrincipals,omitempty"`
	SourceIPs           []string      `json:"sourceIps,omitempty"`
	NotSourceIPs        []string      `json:"notSourceIps,omitempty"`
	DestinationIPs      []string      `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string      `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16      `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16      `json:"notDestinationPorts,omitempty"`
	ServiceAccounts     []DumpAccount `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []DumpAccount `json:"notServiceAccounts,omitempty"`
}

// DumpText is a test of a string; one of the fields is set.
type DumpText struct {
	Exact    string    `json:"Exact,omitempty"`
	Prefix   string    `json:"Prefix,omitempty"`
	Suffix   string    `json:"Suffix,omitempty"`
	Presence *struct{} `json:"Presence,omitempty"`
}

// DumpAccount is a service account.
type DumpAccount struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// String is as in a config_dump.
func (s Scope) String() string {
	switch s {
	case ScopeNamespace:
		return "Namespace"
	case ScopeWorkload:
		return "WorkloadSelector"
	}
	return "Global"
}

// String is as in a config_dump.
func (a Action) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Dump shows the policy.
func (p *Policy) Dump() Dump {
	out := Dump{Name: p.Name, Namespace: p.Namespace, Scope: p.Scope.String(), Action: p.Action.String(), DryRun: p.DryRun, Rules: [][][]DumpMatch{}}
	if p.Invalid != nil {
		out.Invalid = p.Invalid.Error()
	}
	for _, r := range p.rules {
		rule := [][]DumpMatch{}
		for _, c := range r {
			clause := []DumpMatch{}
			for i := range c {
				clause = append(clause, c[i].dump())
			}
			rule = append(rule, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func (m *match) dump() DumpMatch {
	return DumpMatch{
		Namespaces:          each(m.namespaces, text.dump),
		NotNamespaces:       each(m.notNamespaces, text.dump),
		Principals:          each(m.principals, text.dump),
		NotPrincipals:       each(m.notPrincipals, text.dump),
		SourceIPs:           each(m.sources, stringOf),
		NotSourceIPs:        each(m.notSources, stringOf),
		DestinationIPs:      each(m.destinations, stringOf),
		NotDestinationIPs:   each(m.notDestinations, stringOf),
		DestinationPorts:    m.ports,
		NotDestinationPorts: m.notPorts,
		ServiceAccounts:     each(m.accounts, account.dump),
		NotServiceAccounts:  each(m.notAccounts, account.dump),
	}
}

func (t text) dump() DumpText {
	switch t.kind {
	case textPrefix:
		return DumpText{Prefix: t.value}
	case textSuffix:
		return DumpText{Suffix: t.value}
	case textPresence:
		return DumpText{Presence: &struct{}{}}
	}
	return DumpText{Exact: t.value}
}

func (a account) dump() DumpAccount { return DumpAccount{a.namespace, a.name} }

func stringOf[T interface{ String() string }](v T) string { return v.String() }

func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}
