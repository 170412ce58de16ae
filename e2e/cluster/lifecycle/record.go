package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/cluster/kernel"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

// recordPath is where every clone of the repository finds which cluster is on this machine. A copy is in the cluster's own
// folder, since /run may be emptied when the machine boots.
const recordPath = "/run/ambit-cluster.json"

// record says whose cluster is on this machine. It is written before the first thing that it names is made.
type record struct {
	Repository string                    `json:"repository"`
	StateDir   string                    `json:"stateDir"`
	Recipe     string                    `json:"recipe"`
	ProxyMode  string                    `json:"proxyMode"`
	Family     plan.Family               `json:"family"` // that was asked for
	BootID     string                    `json:"bootID"` // of the machine: processes and settings are of this boot
	Ready      bool                      `json:"ready"`  // it came up; without it the run was cut off
	Machines   map[string]kernel.Process `json:"machines"`
	MadeDirs   []string                  `json:"madeDirs"` // mount points that were not there before, outermost first
	Sysctls    map[string]string         `json:"sysctls"`  // machine-wide settings that a kubelet changes, as they were
}

// readRecord returns the record of the machine's cluster or, when there is none, what a cluster in stateDir left from before
// the machine's last boot; nil if there is neither.
func readRecord(stateDir string) (*record, error) {
	data, err := os.ReadFile(recordPath)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(recordCopy(stateDir))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the machine's cluster record: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read the machine's cluster record %s (remove it if it is not from ambit): %w", recordPath, err)
	}
	if boot, err := bootID(); err != nil || boot != r.BootID {
		r.Ready, r.Machines, r.Sysctls = false, nil, nil
	}
	return &r, nil
}

// write replaces the record and its copy.
func (r *record) write() error {
	err := writeJSON(recordPath, r)
	if err == nil {
		err = os.MkdirAll(r.StateDir, 0o755)
	}
	if err == nil {
		err = writeJSON(recordCopy(r.StateDir), r)
	}
	if err != nil {
		return fmt.Errorf("write the machine's cluster record: %w", err)
	}
	return nil
}

func recordCopy(stateDir string) string { return filepath.Join(stateDir, "record.json") }

// bootID names this boot of the machine (random(4)).
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// alive tells whether every machine of the cluster runs.
func (r *record) alive() bool {
	for _, p := range r.Machines {
		if !p.Alive() {
			return false
		}
	}
	return len(r.Machines) > 0
}

// State describes the running cluster for tests and tools; it is StateDir/state.json while a cluster is up.
type State struct {
	Repository    string         `json:"repository"`
	Recipe        string         `json:"recipe"` // key of the programs in the cache
	Programs      string         `json:"programs"`
	Kubeconfig    string         `json:"kubeconfig"`
	Server        string         `json:"server"`
	DNS           netip.Addr     `json:"dns"` // the cluster's name server
	Domain        string         `json:"domain"`
	PodRanges     []netip.Prefix `json:"podRanges"`
	ServiceRanges []netip.Prefix `json:"serviceRanges"`
	Family        plan.Family    `json:"family"`
	IPv6          string         `json:"ipv6"` // "yes", or why not
	ProxyMode     string         `json:"proxyMode"`
	ControlPlane  Machine        `json:"controlPlane"`
	Nodes         []Machine      `json:"nodes"`
}

// Machine is one node, or the control plane's machine.
type Machine struct {
	Name string `json:"name"`
	// Init is the machine's process 1, seen from outside: `nsenter -t PID --mount --net --uts --pid --ipc`.
	Init  kernel.Process `json:"init"`
	NetNS string         `json:"netns"` // name for `ip netns exec`
	// Uplink is the node's link to the others, in NetNS; Port is its other end, in the control plane's namespace, where
	// it is a port of a bridge. A capture on either sees all traffic between nodes.
	Uplink    string         `json:"uplink,omitempty"`
	Port      string         `json:"port,omitempty"`
	Addresses []netip.Addr   `json:"addresses"`
	PodRanges []netip.Prefix `json:"podRanges,omitempty"`
	Disk      string         `json:"disk"`
	Logs      string         `json:"logs"`
}

func stateFile(stateDir string) string { return filepath.Join(stateDir, "state.json") }

// ReadState returns the description of the cluster that is up in the folder, or an error that says that none is.
func ReadState(stateDir string) (State, error) {
	var s State
	data, err := os.ReadFile(stateFile(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, errors.New("no cluster is up: run make cluster-up")
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read state of the cluster: %w", err)
	}
	return s, nil
}

// writeJSON replaces the file in one step.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
