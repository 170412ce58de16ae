package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/enrolment"
)

// Time limits of one ADD. Together they stay well below the four minutes that kubelet gives the container runtime to start
// a sandbox.
const (
	// agentTimeout bounds the agent's answer. It is longer than the agent waits for a node proxy (agentapi.Patience), so
	// that a pod which starts while the node proxy is replaced is delayed and not refused.
	agentTimeout = agentapi.Patience + 5*time.Second
	// lookTimeout bounds one look at the pod and its namespace; there are two.
	lookTimeout = 5 * time.Second
	lookAgain   = time.Second
)

// conf is the plugin's configuration: its entry in the list, and what the runtime adds.
type conf struct {
	agentapi.Entry
	cni types.PluginConf
}

// podArgs are CNI_ARGS as Kubernetes' runtimes set them.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

// Objects reads from the API what decides about a pod. Both return an error for what does not exist.
type Objects interface {
	Pod(ctx context.Context, namespace, name string) (uid string, pod enrolment.Pod, err error)
	NamespaceLabels(ctx context.Context, name string) (map[string]string, error)
}

// Plugin answers the container runtime.
type Plugin struct {
	// Open returns access to the API by the kubeconfig at the path.
	Open func(kubeconfig string) (Objects, error)
	// Stdout takes the result, Stderr the log.
	Stdout, Stderr io.Writer
}

// Funcs are the CNI verbs. Only ADD does something: what an ADD left is found by the agent itself, and a node is not
// unready because the agent is away.
func (p Plugin) Funcs() skel.CNIFuncs {
	nothing := func(*skel.CmdArgs) error { return nil }
	return skel.CNIFuncs{Add: p.Add, Del: nothing, Check: nothing, GC: nothing, Status: nothing}
}

// Add lets the pod start, or returns the error that is shown on it.
func (p Plugin) Add(args *skel.CmdArgs) error {
	c, previous, err := parseConf(args.StdinData)
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "ambit: read the CNI configuration of plugin "+api.PluginName, err.Error())
	}
	var k podArgs
	if err := types.LoadArgs(args.Args, &k); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "ambit: read CNI_ARGS", err.Error())
	}
	log := slog.New(slog.NewJSONHandler(p.Stderr, &slog.HandlerOptions{Level: level(c.LogLevel)})).
		With("plugin", api.PluginName, "pod", string(k.K8S_POD_NAMESPACE)+"/"+string(k.K8S_POD_NAME))
	if err := p.admit(context.Background(), c, k, request(args, k, previous), log); err != nil {
		log.Warn("pod refused", "error", err)
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	result, err := previous.GetAsVersion(c.cni.CNIVersion)
	if err != nil {
		return err
	}
	return result.PrintTo(p.Stdout)
}

func level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}

func parseConf(stdin []byte) (*conf, *current.Result, error) {
	var c conf
	if err := errors.Join(json.Unmarshal(stdin, &c.cni), json.Unmarshal(stdin, &c.Entry)); err != nil {
		return nil, nil, err
	}
	if err := version.ParsePrevResult(&c.cni); err != nil {
		return nil, nil, err
	}
	if c.cni.PrevResult == nil {
		return nil, nil, errors.New("no result of an earlier plugin: this one stands behind the network's own")
	}
	result, err := current.NewResultFromResult(c.cni.PrevResult)
	return &c, result, err
}

func request(args *skel.CmdArgs, k podArgs, previous *current.Result) agentapi.AddRequest {
	r := agentapi.AddRequest{
		Netns: args.Netns, PodNamespace: string(k.K8S_POD_NAMESPACE), PodName: string(k.K8S_POD_NAME), PodUID: string(k.K8S_POD_UID),
	}
	for _, ip := range previous.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			r.IPs = append(r.IPs, agentapi.IP{Address: net.IPNet{IP: a.Unmap().AsSlice(), Mask: ip.Address.Mask}})
		}
	}
	return r
}

// admit returns nil if the pod may start.
func (p Plugin) admit(ctx context.Context, c *conf, k podArgs, r agentapi.AddRequest, log *slog.Logger) error {
	namespace, name := r.PodNamespace, r.PodName
	switch {
	case namespace == "" || name == "":
		return nil // no pod of Kubernetes
	case namespace == c.MeshNamespace && strings.HasPrefix(name, api.NodeAgent+"-"):
		return nil // the agent itself, which could not answer
	case slices.Contains(c.ExcludeNamespaces, namespace):
		return nil
	}
	asked, cancel := context.WithTimeout(ctx, agentTimeout)
	err := agentapi.Add(asked, filepath.Join(c.RunDir, api.AgentSocket), r)
	cancel()
	if err == nil {
		return nil
	}
	if !errors.Is(err, agentapi.ErrNoAnswer) {
		return fmt.Errorf("ambit did not start the pod, since it cannot capture its traffic: %w", err)
	}
	log.Warn("agent does not answer", "error", err)
	d, lookErr := p.look(ctx, c, r)
	remedy := fmt.Sprintf("The pod starts by itself once ambit's agent runs on this node: look at DaemonSet %s/%s (kubectl -n %s get pods -o wide)",
		c.MeshNamespace, api.NodeAgent, c.MeshNamespace)
	switch {
	case lookErr != nil:
		return fmt.Errorf("ambit did not start the pod, since it does not know whether to capture it: its agent on this node does not answer (%w), "+
			"and the pod's labels cannot be read (%w). %s", err, lookErr, remedy)
	case d.Capture:
		return fmt.Errorf("ambit did not start the pod, since it is to be captured, because %s, and ambit's agent on this node does not answer (%w). %s",
			d.Reason, err, remedy)
	}
	log.Info("pod starts without the agent", "because", d.Reason)
	return nil
}

// look decides from the API what the agent would.
func (p Plugin) look(ctx context.Context, c *conf, r agentapi.AddRequest) (enrolment.Decision, error) {
	objects, err := p.Open(c.Kubeconfig)
	if err != nil {
		return enrolment.Decision{}, err
	}
	d, err := decide(ctx, objects, c, r)
	if err == nil {
		return d, nil
	}
	select {
	case <-time.After(lookAgain):
	case <-ctx.Done():
		return enrolment.Decision{}, err
	}
	return decide(ctx, objects, c, r)
}

func decide(ctx context.Context, objects Objects, c *conf, r agentapi.AddRequest) (enrolment.Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	uid, pod, err := objects.Pod(ctx, r.PodNamespace, r.PodName)
	if err != nil {
		return enrolment.Decision{}, err
	}
	if r.PodUID != "" && uid != r.PodUID {
		return enrolment.Decision{}, fmt.Errorf("the API knows pod %s/%s with UID %s, and %s is to be started", r.PodNamespace, r.PodName, uid, r.PodUID)
	}
	labels, err := objects.NamespaceLabels(ctx, r.PodNamespace)
	if err != nil {
		return enrolment.Decision{}, err
	}
	return enrolment.Decide(pod, labels, c.ExcludeNamespaces), nil
}
