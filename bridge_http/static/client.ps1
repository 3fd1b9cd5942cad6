<#
Asks a bridge of zmqrt, with nothing but PowerShell (5.1 or newer). It comes from that bridge: GET /client.ps1

    powershell -ExecutionPolicy Bypass -File client.ps1 [-Url URL] [-MaxTokens N] [-Temperature T] PROMPT

ZMQRT_URL is the bridge (http://127.0.0.1:8000 without it), ZMQRT_API_KEY the key, where it asks for one.
The answer is written as it is made. Exit code: 0 answered, 1 refused or failed.
#>
param(
    [Parameter(Mandatory = $true, Position = 0)] [string] $Prompt,
    [string] $Url = $env:ZMQRT_URL,
    [int] $MaxTokens = 100,
    [double] $Temperature = 0.7
)

$ErrorActionPreference = 'Stop'
if (-not $Url) { $Url = 'http://127.0.0.1:8000' }
[Console]::OutputEncoding = [System.Text.UTF8Encoding]::new($false)
# 5.1 on an older Windows offers nothing that a bridge takes unless it is told to.
$spoken = [System.Net.ServicePointManager]::SecurityProtocol
[System.Net.ServicePointManager]::SecurityProtocol = $spoken -bor [System.Net.SecurityProtocolType]::Tls12

function Get-Detail([string] $Text) {
    try { $told = (ConvertFrom-Json $Text).detail } catch { $told = $null }
    if ($told) { return [string] $told }
    return $Text
}

function Stop-With([string] $Text) {
    [Console]::Error.WriteLine('client.ps1: ' + $Text)
    exit 1
}

$fields = @{ prompt = $Prompt; max_tokens = $MaxTokens; temperature = $Temperature }
$body = [System.Text.Encoding]::UTF8.GetBytes((ConvertTo-Json $fields -Compress))

# Not Invoke-WebRequest: that one gives nothing out before the answer has ended.
$request = [System.Net.WebRequest]::Create($Url.TrimEnd('/') + '/infer')
$request.Method = 'POST'
$request.Accept = 'text/event-stream'
$request.ContentType = 'application/json; charset=utf-8'
$request.Timeout = 600000
$request.ReadWriteTimeout = 600000
if ($env:ZMQRT_API_KEY) { $request.Headers.Add('x-api-key', $env:ZMQRT_API_KEY) }

try {
    $sending = $request.GetRequestStream()
    $sending.Write($body, 0, $body.Length)
    $sending.Close()
    $response = $request.GetResponse()
} catch {
    $failure = $_.Exception
    while ($failure.InnerException -and -not ($failure -is [System.Net.WebException])) { $failure = $failure.InnerException }
    if (($failure -is [System.Net.WebException]) -and $failure.Response) {
        $reader = [System.IO.StreamReader]::new($failure.Response.GetResponseStream(), [System.Text.Encoding]::UTF8)
        Stop-With (Get-Detail $reader.ReadToEnd())
    }
    Stop-With $failure.Message
}

$name = ''
$reader = [System.IO.StreamReader]::new($response.GetResponseStream(), [System.Text.Encoding]::UTF8)
try {
    while ($null -ne ($line = $reader.ReadLine())) {
        if ($line.StartsWith('event: ')) {
            $name = $line.Substring(7)
        } elseif ($line.StartsWith('data: ')) {
            $data = $line.Substring(6)
            if ($name -eq 'token') {
                [Console]::Write((ConvertFrom-Json $data).text)
            } elseif ($name -eq 'done') {
                [Console]::WriteLine()
                exit 0
            } elseif ($name -eq 'error') {
                [Console]::WriteLine()
                Stop-With (Get-Detail $data)
            }
        }
    }
} catch {
    Stop-With $_.Exception.Message
} finally {
    $response.Close()
}
Stop-With ('no whole answer came from ' + $Url)
