package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/cni/agent"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/install"
	"github.com/ambit-mesh/ambit/cni/probes"
	"github.com/ambit-mesh/ambit/cni/resolver"
	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/cni/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// apiRate bounds the agent's requests to the API per second: a namespace with all pods of a node may be enrolled at once.
const apiRate = 50

// settings are the program's flags.
type settings struct {
	excludeNamespaces   []string
	binDir, confDir     string
	hostProc, netnsDir  string
	runDir, zdsSocket   string
	stateDir            string
	binary, kubeconfig  string
	healthAddr, metrics string
	ipv6, dns           bool
	logLevel, logFormat string
}

// run is the whole program: the agent, its clean-up command, or its version.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var s settings
	root := &cobra.Command{
		Use: "cni-agent", Short: "The node's CNI agent of ambit.", Version: build.Version(), Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.serve(cmd.Context(), stderr) },
	}
	root.AddCommand(&cobra.Command{
		Use: "cleanup", Short: "Remove everything of ambit from this node: plugin, rules, sets and sockets.", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.cleanup(cmd.Context(), stderr) },
	}, &cobra.Command{
		Use: "version", Short: "Print the version.", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, "cni-agent", build.Version())
			return err
		},
	})
	root.SetVersionTemplate("cni-agent {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringSliceVar(&s.excludeNamespaces, "exclude-namespaces", []string{"kube-system"}, "namespaces whose pods are never captured")
	f.StringVar(&s.binDir, "cni-bin-dir", "/host/opt/cni/bin", "the host's folder of CNI plugins, as this program sees it")
	f.StringVar(&s.confDir, "cni-conf-dir", "/host/etc/cni/net.d", "the host's folder of CNI configurations, as this program sees it")
	f.StringVar(&s.hostProc, "host-proc", "/host/proc", "the host's /proc, as this program sees it")
	f.StringVar(&s.netnsDir, "netns-dir", "/host/var/run/netns", "the host's /var/run/netns, as this program sees it")
	f.StringVar(&s.runDir, "run-dir", api.AgentRunDir, "folder of the plugin's socket and kubeconfig; the same path on the host")
	f.StringVar(&s.zdsSocket, "zds-socket", api.ZDSSocket, "socket for node proxies")
	f.StringVar(&s.stateDir, "state-dir", "", "folder that node proxies save their configuration in, whose files are removed when the mesh leaves the node; empty: none")
	f.StringVar(&s.binary, "plugin", "/usr/local/bin/"+api.PluginName, "the CNI plugin to install")
	f.StringVar(&s.kubeconfig, "kubeconfig", "", "access to the API; empty: that of the pod's service account")
	f.StringVar(&s.healthAddr, "health-addr", ":"+strconv.Itoa(api.PortAgentHealth), "address of /healthz, /readyz and /release")
	f.StringVar(&s.metrics, "metrics-addr", ":"+strconv.Itoa(api.PortAgentMetrics), "address of /metrics")
	f.BoolVar(&s.ipv6, "ipv6", true, "capture IPv6, too, in pods that have it")
	f.BoolVar(&s.dns, "dns-capture", dnsDefault(), "have name queries of pods go to the node proxy, where it takes them ($AMBIENT_DNS_CAPTURE)")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&s.logFormat, "log-format", "json", "json or text")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func (s *settings) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	switch s.logFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format is %q, neither json nor text", s.logFormat)
}

// node is what of this node agent and clean-up work on. The caller closes host.
type node struct {
	host   ns.NetNS
	kernel *rules.Kernel
	probes *probes.Host
	find   *discover.Node
}

func (s *settings) node(ctx context.Context) (*node, error) {
	// The lock file of the legacy kind of iptables is for changes in pods the agent's own, so that they do not wait for other
	// programs of the host; for changes on the host, package probes takes the host's.
	if err := os.Setenv("XTABLES_LOCKFILE", filepath.Join(os.TempDir(), "xtables.lock")); err != nil {
		return nil, err
	}
	host, err := discover.Host(s.hostProc)
	if err != nil {
		return nil, err
	}
	kernel, err := rules.NewKernel(ctx, host)
	if err != nil {
		host.Close()
		return nil, err
	}
	return &node{
		host: host, kernel: kernel, find: &discover.Node{HostProc: s.hostProc, NetNSDir: s.netnsDir},
		probes: probes.New(probes.Config{NetNS: host, Backend: kernel.Host(), LockFile: filepath.Join(s.hostProc, "1/root/run/xtables.lock")}),
	}, nil
}

func (s *settings) installer(log *slog.Logger, repaired func()) *install.Installer {
	return install.New(install.Config{
		ConfDir: s.confDir, BinDir: s.binDir, Binary: s.binary, Logger: log, Repaired: repaired,
		Entry: agentapi.Entry{
			Type: api.PluginName, LogLevel: s.logLevel, RunDir: s.runDir, Kubeconfig: s.pluginKubeconfig(),
			MeshNamespace: os.Getenv("POD_NAMESPACE"), ExcludeNamespaces: s.excludeNamespaces,
		},
	})
}

func (s *settings) pluginKubeconfig() string {
	return filepath.Join(s.runDir, api.PluginName+"-kubeconfig")
}

// serve runs the agent.
func (s *settings) serve(ctx context.Context, stderr io.Writer) error {
	log, err := s.logger(stderr)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log)
	nodeName, namespace := os.Getenv("NODE_NAME"), os.Getenv("POD_NAMESPACE")
	if nodeName == "" || namespace == "" {
		return errors.New("NODE_NAME and POD_NAMESPACE must be set, from the pod's own fields")
	}
	n, err := s.node(ctx)
	if err != nil {
		return err
	}
	defer n.host.Close()
	config, err := s.access()
	if err != nil {
		return fmt.Errorf("access to the API: %w", err)
	}
	config.QPS, config.Burst = apiRate, 2*apiRate
	config.UserAgent = "ambit-cni-agent/" + build.Version()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("access to the API: %w", err)
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := agent.NewMetrics(registry)

	var a *agent.Agent
	var depot *handover.Depot
	proxies := zds.NewServer(zds.Config{
		Logger: log, Observe: func(e zds.Event) { a.ProxyEvent(e) }, Forgotten: func(ns handover.NetNS) { depot.Forget(ns) },
	})
	defer proxies.Close()
	depot = handover.NewDepot(handover.DepotConfig{Pods: proxies, Logger: log, Registerer: registry})
	defer depot.Close()
	a = agent.New(agent.Config{
		NodeName: nodeName, Namespace: namespace, ExcludeNamespaces: s.excludeNamespaces, IPv6: s.ipv6, DNS: s.dns, Resolvers: s.resolvers(namespace, log), RunDir: s.runDir, ZDSSocket: s.zdsSocket, StateDir: s.stateDir,
		Cluster: agent.Cluster{
			Client: client, NodeName: nodeName, Namespace: namespace, DaemonSet: api.NodeAgent,
			Events: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: api.NodeAgent, Host: nodeName}),
		},
		Kernel: n.kernel, Connections: conntrack.Kernel{}, Probes: n.probes, Node: n.find, Proxies: proxies, Depot: depot,
		Installation: install.Installation{Installer: s.installer(log, metrics.Installed), Credential: s.credential(client, config, namespace, log)},
		Metrics:      metrics, Logger: log,
	})
	log.Info("agent starts", "version", build.Version(), "node", nodeName, "iptables", n.kernel.Host().Kind)
	return s.alongside(ctx, a, registry)
}

// dnsDefault is the setting of Istio's agent; it is on where nothing is said.
func dnsDefault() bool {
	on, err := strconv.ParseBool(os.Getenv("AMBIENT_DNS_CAPTURE"))
	return err != nil || on
}

// resolvers is what kubelet gives this node's pods: it gave the agent's own the cluster's.
func (s *settings) resolvers(namespace string, log *slog.Logger) resolver.Node {
	own, err := resolver.Read("/")
	if err != nil {
		log.Warn("the cluster's resolvers are not known; node proxies take the usual ones for pods that start", "error", err)
	}
	host, err := resolver.Read(filepath.Join(s.hostProc, "1/root"))
	if err != nil {
		log.Warn("the node's own resolvers are not known", "error", err)
	}
	return resolver.NewNode(own, namespace, host)
}

func (s *settings) access() (*rest.Config, error) {
	if s.kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", s.kubeconfig)
}

func (s *settings) credential(client kubernetes.Interface, config *rest.Config, namespace string, log *slog.Logger) install.Credential {
	return install.Credential{
		Client: client, Cluster: config, Namespace: namespace, ServiceAccount: api.PluginName + "-plugin",
		Path: s.pluginKubeconfig(), Logger: log,
	}
}

// alongside runs the agent with its health and metrics servers, until it ends.
func (s *settings) alongside(ctx context.Context, a *agent.Agent, registry *prometheus.Registry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var servers sync.WaitGroup
	defer servers.Wait()
	failed := make(chan error, 2)
	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	for addr, handler := range map[string]http.Handler{s.healthAddr: a.Health(), s.metrics: metrics} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
		defer server.Close()
		servers.Go(func() {
			if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
				cancel()
			}
		})
	}
	err := a.Run(ctx)
	select {
	case serr := <-failed:
		return errors.Join(serr, err)
	default:
		return err
	}
}

// cleanup takes everything away, without the API.
func (s *settings) cleanup(ctx context.Context, stderr io.Writer) error {
	log, err := s.logger(stderr)
	if err != nil {
		return err
	}
	n, err := s.node(ctx)
	if err != nil {
		return err
	}
	defer n.host.Close()
	err = agent.Cleanup(ctx, agent.CleanupConfig{
		Node: n.find, Kernel: n.kernel, Probes: n.probes, Leftovers: agent.Leftovers(s.runDir, s.zdsSocket), StateDir: s.stateDir,
		Installation: install.Installation{Installer: s.installer(log, func() {}), Credential: install.Credential{Path: s.pluginKubeconfig()}},
	})
	if err != nil {
		return fmt.Errorf("clean the node: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}
